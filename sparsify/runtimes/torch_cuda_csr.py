"""PyTorch on a CUDA GPU, linear layers and 1x1 convolutions through cuSPARSE."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCudaCsr(Runtime):
    """CSR weights times dense activations; other layers as in `torch_cuda`."""

    package = "torch"
    on_cuda = True
    runs_module = True

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._csr import Csr
        from sparsify.runtimes._layers import replace_layers
        from sparsify.runtimes._torch import exact_products, module_on, runner

        exact_products()
        module = module_on(path)
        replace_layers(module, Csr)
        return runner(module)
