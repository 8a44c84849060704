"""PyTorch, eager, on a CUDA GPU with TF32 products."""

from pathlib import Path
from typing import final

from sparsify.runtimes import REDUCED, Run, Runtime


@final
class TorchCudaTf32(Runtime):
    """float32 weights, products on tensor cores with 10 bits of mantissa."""

    package = "torch"
    on_cuda = True
    runs_module = True
    tolerance = REDUCED

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._torch import module_on, runner

        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        return runner(module_on(path))
