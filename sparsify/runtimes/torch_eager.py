"""PyTorch, eager, on the CPU."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchEager(Runtime):
    """The network as a torch module in inference mode. It knows no sparsity: zeros are multiplied."""

    package = "torch"

    def refuses(self, path: Path) -> str | None:
        from sparsify.runtimes._torch import refuses_foreign

        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._torch import module_on, runner

        torch.set_num_threads(threads)
        return runner(module_on(path, "cpu"), "cpu")
