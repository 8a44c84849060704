"""PyTorch on a CUDA GPU in float32, the whole network recorded as one CUDA graph."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCudaGraph(Runtime):
    """What `torch_cuda` computes, launched at once: at batch 1 launches are most of the time."""

    package = "torch"
    on_cuda = True
    runs_module = True

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._graph import Recorded
        from sparsify.runtimes._torch import exact_products, module_on, runner

        exact_products()
        return runner(Recorded(module_on(path)))
