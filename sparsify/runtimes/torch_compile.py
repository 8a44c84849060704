"""PyTorch through torch.compile, on the CPU."""

import shutil
from pathlib import Path
from typing import final

from sparsify.runtimes import Run, Runtime


@final
class TorchCompile(Runtime):
    """Inductor's C++ code. It knows no sparsity: zeros are multiplied."""

    package = "torch"
    runs_module = True
    on_request = "compiles for minutes"

    def lacks(self) -> str | None:
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "no C++ compiler is installed, which torch.compile needs"
        return super().lacks()

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._torch import module_on_cpu, runner

        return runner(torch.compile(module_on_cpu(path, threads)), "cpu")
