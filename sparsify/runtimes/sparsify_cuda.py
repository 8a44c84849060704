"""Our own sparse products on a CUDA GPU."""

import importlib.util
from pathlib import Path
from typing import final

from sparsify import __version__
from sparsify.runtimes import Run, Runtime


@final
class SparsifyCuda(Runtime):
    """Linear layers and 1x1 convolutions by their non-zeros, in Triton; other layers as in `torch_cuda`."""

    package = "sparsify-rigl"
    on_cuda = True
    runs_module = True

    def lacks(self) -> str | None:
        return None if importlib.util.find_spec("triton") else "the package triton is not installed"

    def version(self) -> str:
        return f"{self.package} {__version__}"

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.gpu.layers import sparse_layer
        from sparsify.runtimes._layers import replace_layers
        from sparsify.runtimes._torch import exact_products, module_on, runner

        exact_products()
        module = module_on(path)
        replace_layers(module, sparse_layer)
        return runner(module)
