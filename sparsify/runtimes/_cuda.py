"""What the runtimes on CUDA GPUs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.formats import onnx
from sparsify.formats._module import build_module
from sparsify.runtimes import Run


def no_device() -> str | None:
    """Why there is no GPU to use, or None."""
    return None if torch.cuda.is_available() else "there is no CUDA device"


def refuses_foreign(path: Path) -> str | None:
    """Why no torch module can be built from the file, or None."""
    if onnx.read(path).metadata is None:
        return "the file was not written by sparsify, so the torch module is not known"
    return None


def module_on(path: Path, device: str = "cuda", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The file's network on the device, its weights as `dtype`."""
    return build_module(onnx.read(path)).to(device, dtype)


def runner(forward: Callable[[Tensor], Tensor], device: str = "cuda", dtype: torch.dtype = torch.float32) -> Run:
    """From array to array: what a user waits for, copies to the device and back included."""

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(inputs).to(device)
            result: np.ndarray = forward(x.to(dtype) if x.is_floating_point() else x).float().cpu().numpy()
            return result

    return run


def exact_products() -> None:
    """Products of float32 in float32, not in TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
