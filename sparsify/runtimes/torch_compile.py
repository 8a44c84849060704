"""PyTorch through torch.compile, on the CPU."""

import shutil
from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCompile(Runtime):
    """Inductor's C++ code. It knows no sparsity: zeros are multiplied."""

    package = "torch"
    on_request = "compiles for minutes"

    def missing(self) -> str | None:
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "no C++ compiler is installed, which torch.compile needs"
        return super().missing()

    def refuses(self, path: Path) -> str | None:
        from sparsify.runtimes._torch import refuses_foreign

        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._torch import module_on, runner

        torch.set_num_threads(threads)
        return runner(torch.compile(module_on(path, "cpu")), "cpu")
