"""PyTorch on the CPU, linear layers and 1x1 convolutions in CSR."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCsr(Runtime):
    """CSR weights times dense activations, by MKL where torch has it; other layers as in `torch_eager`."""

    package = "torch"

    def refuses(self, path: Path) -> str | None:
        from sparsify.runtimes._torch import refuses_foreign

        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._csr import Csr
        from sparsify.runtimes._layers import replace_layers
        from sparsify.runtimes._torch import module_on, runner

        torch.set_num_threads(threads)
        module = module_on(path, "cpu")
        replace_layers(module, Csr)
        return runner(module, "cpu")
