"""PyTorch, eager, on a CUDA GPU in bfloat16."""

from pathlib import Path
from typing import final

import torch

from sparsify.runtimes import REDUCED, Run, Runtime
from sparsify.runtimes._torch import module_on, no_device, refuses_foreign, runner


@final
class TorchCudaBf16(Runtime):
    """Weights and activations in bfloat16, images with their channels last."""

    package = "torch"
    tolerance = REDUCED

    def missing(self) -> str | None:
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        module = module_on(path, dtype=torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return runner(module, dtype=torch.bfloat16)
