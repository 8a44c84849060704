"""PyTorch, eager, on a CUDA GPU in bfloat16."""

from pathlib import Path
from typing import final

from sparsify.runtimes import REDUCED, Run, Runtime


@final
class TorchCudaBf16(Runtime):
    """Weights and activations in bfloat16, images with their channels last."""

    package = "torch"
    on_cuda = True
    runs_module = True
    tolerance = REDUCED

    def load(self, path: Path, threads: int) -> Run:
        import torch

        from sparsify.runtimes._torch import module_on, runner

        module = module_on(path, dtype=torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return runner(module, dtype=torch.bfloat16)
