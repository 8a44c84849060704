"""Our own sparse products on a CUDA GPU."""

import importlib.util
from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime
from sparsify.runtimes._layers import replace_layers
from sparsify.runtimes._torch import exact_products, module_on, no_device, refuses_foreign, runner


@final
class SparsifyCuda(Runtime):
    """Linear layers and 1x1 convolutions by their non-zeros, in Triton; other layers as in `torch_cuda`."""

    package = "sparsify-rigl"

    def missing(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.gpu.layers import sparse_layer

        exact_products()
        module = module_on(path)
        replace_layers(module, sparse_layer)
        return runner(module)
