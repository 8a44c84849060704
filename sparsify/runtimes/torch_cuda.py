"""PyTorch, eager, on a CUDA GPU in float32."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime
from sparsify.runtimes._torch import exact_products, module_on, no_device, refuses_foreign, runner


@final
class TorchCuda(Runtime):
    """cuBLAS and cuDNN on dense weights, without TF32."""

    package = "torch"

    def missing(self) -> str | None:
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        exact_products()
        return runner(module_on(path))
