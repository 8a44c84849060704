"""PyTorch, eager, on a CUDA GPU in float32."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCuda(Runtime):
    """cuBLAS and cuDNN on dense weights, without TF32."""

    package = "torch"
    on_cuda = True
    runs_module = True

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._torch import exact_products, module_on, runner

        exact_products()
        return runner(module_on(path))
