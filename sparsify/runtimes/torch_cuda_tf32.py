"""PyTorch, eager, on a CUDA GPU with TF32 products."""

from pathlib import Path
from typing import final

import torch

from sparsify.runtimes import REDUCED, Run, Runtime
from sparsify.runtimes._torch import module_on, no_device, refuses_foreign, runner


@final
class TorchCudaTf32(Runtime):
    """float32 weights, products on tensor cores with 10 bits of mantissa."""

    package = "torch"
    tolerance = REDUCED

    def missing(self) -> str | None:
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        return runner(module_on(path))
