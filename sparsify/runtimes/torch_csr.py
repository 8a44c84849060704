"""PyTorch on the CPU, linear layers and 1x1 convolutions in CSR."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCsr(Runtime):
    """CSR weights times dense activations, by MKL where torch has it; other layers as in `torch_eager`."""

    package = "torch"
    runs_module = True

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._csr import Csr
        from sparsify.runtimes._layers import replace_layers
        from sparsify.runtimes._torch import module_on_cpu, runner

        module = module_on_cpu(path, threads)
        replace_layers(module, Csr)
        return runner(module, "cpu")
