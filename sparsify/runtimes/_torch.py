"""What the runtimes of torch share, on CPUs and on CUDA GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.formats import onnx
from sparsify.formats._module import build_module
from sparsify.recipe import parse_recipe
from sparsify.references import is_reference
from sparsify.runtimes import Run


def refuses_foreign(path: Path) -> str | None:
    """Why no torch module can be built from the file, or None."""
    record = onnx.read(path).metadata
    if record is None:
        return "the file was not written by sparsify, so the torch module is not known"
    if is_reference(parse_recipe(record.network.recipe).model.name):
        return "the network is code of somebody's own, which is not imported because a file names it"
    if record.uncut_shapes:
        return "channels were cut away from it, so it is no longer the recipe's torch module"
    return None


def module_on(path: Path, device: str = "cuda", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The file's network on the device, its weights as `dtype`."""
    return build_module(onnx.read(path)).to(device, dtype)


def module_on_cpu(path: Path, threads: int) -> nn.Module:
    """The file's network on the CPU; torch uses that many threads from here on."""
    torch.set_num_threads(threads)
    return module_on(path, "cpu")


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
