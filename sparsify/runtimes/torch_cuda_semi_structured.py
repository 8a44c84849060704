"""PyTorch on a CUDA GPU, linear layers with 2:4 sparsity on sparse tensor cores."""

from pathlib import Path
from typing import final

import numpy as np

from sparsify.runtimes import REDUCED, Run, Runtime

MULTIPLE = 64  # of rows and columns that the hardware's format takes in bfloat16


@final
class TorchCudaSemiStructured(Runtime):
    """bfloat16; layers with at most 2 non-zeros in each 4 inputs, as `nm_rigl` with m = 4 trains them."""

    package = "torch"
    on_cuda = True
    runs_module = True
    tolerance = REDUCED

    def refuses(self, path: Path) -> str | None:
        from sparsify.formats import onnx

        if reason := super().refuses(path):
            return reason
        if not any(is_two_of_four(weight) for weight in onnx.read(path).tensors.values()):
            return "no linear layer has 2:4 sparsity with rows and columns in multiples of 64"
        return None

    def load(self, path: Path, threads: int) -> Run:
        import torch
        from torch import nn
        from torch.sparse import to_sparse_semi_structured

        from sparsify.runtimes._torch import module_on, runner

        module = module_on(path, dtype=torch.bfloat16)
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and is_two_of_four(layer.weight.detach().float().cpu().numpy()):
                layer.weight = nn.Parameter(to_sparse_semi_structured(layer.weight.detach()), requires_grad=False)
        return runner(module, dtype=torch.bfloat16)


def is_two_of_four(weight: np.ndarray) -> bool:
    """Whether the hardware's format holds the matrix [out, in]: at most 2 non-zeros in each 4 neighbours of a row."""
    if weight.ndim != 2 or weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
        return False
    return bool(((weight != 0).reshape(-1, 4).sum(1) <= 2).all())
