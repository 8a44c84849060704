"""PyTorch on a CUDA GPU, linear layers and 1x1 convolutions through cuSPARSE."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime
from sparsify.runtimes._csr import Csr
from sparsify.runtimes._layers import replace_layers
from sparsify.runtimes._torch import exact_products, module_on, no_device, refuses_foreign, runner


@final
class TorchCudaCsr(Runtime):
    """CSR weights times dense activations; other layers as in `torch_cuda`."""

    package = "torch"

    def missing(self) -> str | None:
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        exact_products()
        module = module_on(path)
        replace_layers(module, Csr)
        return runner(module)
