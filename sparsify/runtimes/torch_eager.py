"""PyTorch, eager, on the CPU."""

from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchEager(Runtime):
    """The network as a torch module in inference mode. It knows no sparsity: zeros are multiplied."""

    package = "torch"
    runs_module = True

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._torch import module_on_cpu, runner

        return runner(module_on_cpu(path, threads), "cpu")
