"""Tensors of a torch checkpoint, whoever wrote it. torch is imported when a function is called, not before."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import FormatError
from sparsify.formats._bits import WIDTHS, StoredTensor, of_array, unsigned
from sparsify.formats._header import TensorFile


def read_checkpoint(path: Path) -> TensorFile:
    """The model in a checkpoint, loaded without running anything that is pickled in it. Raises FormatError."""
    import torch

    def load(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            content = load(mmap=True)
        except RuntimeError:  # the form before torch 1.6 cannot be mapped
            content = load(mmap=False)
    except pickle.UnpicklingError:
        raise FormatError(
            f"{path} holds Python objects besides tensors, or is damaged. Objects are never loaded, because "
            f"loading them runs code. Save model.state_dict() alone with torch.save and convert that file."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0][:200] or "it is empty"
        raise FormatError(
            f"{path} is not a readable torch checkpoint ({reason}). It was cut short or damaged. Copy or save it again."
        ) from None
    state = _state_dict(content, path)
    return TensorFile({name: _of_torch(tensor, name) for name, tensor in state.items()}, {"format": "pt"})


def _state_dict(content: Any, path: Path) -> Mapping[str, Any]:
    """The table of tensors in a checkpoint, which may lie below a key such as Lightning's state_dict."""
    tables = content.items() if isinstance(content, Mapping) else ()
    inner = {key: found for key, value in tables if (found := _tensors_in(value))}
    for preferred in ("state_dict", "model_state_dict", "model"):
        if preferred in inner:
            return inner[preferred]
    if top := _tensors_in(content):
        return top
    if len(inner) == 1:
        return next(iter(inner.values()))
    several = f"several tables of tensors ({', '.join(map(str, inner))})" if inner else "no table of tensors"
    raise FormatError(
        f"{path} holds {several}, so it is not clear what the model is. Save model.state_dict() alone with "
        f"torch.save and convert that file."
    )


def _tensors_in(value: Any) -> dict[str, Any]:
    import torch

    items = value.items() if isinstance(value, Mapping) else ()
    return {key: tensor for key, tensor in items if isinstance(key, str) and isinstance(tensor, torch.Tensor)}


def _of_torch(tensor: Any, name: str) -> StoredTensor:
    """A torch tensor as a stored one; its bytes are read when they are needed."""
    import torch

    dtype = _type_name(str(tensor.dtype))
    if dtype not in WIDTHS or tensor.is_quantized:
        raise FormatError(f"{name} is of type {tensor.dtype}, which safetensors cannot hold. Convert it first.")
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()

    def chunks() -> Iterator[np.ndarray]:
        flat = dense.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield from of_array(flat.view(unsigned(dtype)), name).chunks()

    return StoredTensor(dtype, tuple(tensor.shape), chunks)


def _type_name(dtype: str) -> str:
    """safetensors' name of a torch type: F8_E4M3 for "torch.float8_e4m3fn"."""
    name = dtype.removeprefix("torch.").upper()
    for word, letters in (("BFLOAT", "BF"), ("FLOAT", "F"), ("UINT", "U"), ("INT", "I"), ("COMPLEX", "C")):
        if name.startswith(word):
            return (letters + name.removeprefix(word)).removesuffix("FN")
    return name
