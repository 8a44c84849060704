"""Tensors of whatever file or folder a user points at: safetensors, shards with an index, torch checkpoints, ONNX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from sparsify.errors import FormatError
from sparsify.formats._bits import StoredTensor
from sparsify.formats._header import TensorFile, read_file
from sparsify.formats._metadata import KEY
from sparsify.formats._packed import unpacked
from sparsify.formats._torch_checkpoint import read_checkpoint

INDEX = ".safetensors.index.json"
WHOLE = "model.safetensors"
TORCH = (".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
MAX_INDEX = 1 << 28  # bytes


def container_opener(path: Path) -> Callable[[Path], TensorFile] | None:
    """What opens the tensors at `path`, or None where there are none that we know of."""
    if path.is_dir():
        return _open_folder if _index_of(path) or (path / WHOLE).is_file() else None
    if path.name.endswith(INDEX):
        return _open_shards
    if path.suffix == ".onnx":
        return _open_onnx
    if path.suffix in TORCH:
        return read_checkpoint
    return _open_single if path.suffix == ".safetensors" else None


def open_tensors(path: Path) -> TensorFile:
    """Tensors by name; none is read yet. Packed ones decode as they are read, pruning masks are applied.

    Raises FormatError where there is no such file or it breaks a rule.
    """
    opener = container_opener(path)
    if opener is None:
        raise FormatError(f"{path} is not a kind of file that tensors can be read from.")
    if not path.exists():
        raise FormatError(f"There is no file {path}. Check the path.")
    file = opener(path)
    if KEY in file.metadata or file.mask_digest is not None:
        return file
    return TensorFile(_with_masks(_without_wrappers(file.tensors)), file.metadata)


def _open_single(path: Path) -> TensorFile:
    return unpacked(read_file(path), path)


def _open_folder(path: Path) -> TensorFile:
    index = _index_of(path)
    return _open_shards(index) if index else _open_single(path / WHOLE)


def _index_of(folder: Path) -> Path | None:
    found = sorted(folder.glob(f"*{INDEX}"))
    return found[0] if len(found) == 1 else None


def _open_shards(index: Path) -> TensorFile:
    """Every tensor that the index of a sharded checkpoint lists, from the files beside it."""
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    listed = sorted(_weight_map(index).items(), key=lambda item: (item[1], item[0]))
    for shard, entries in groupby(listed, key=lambda item: item[1]):
        path = index.parent / shard
        if Path(shard).name != shard or not path.is_file():
            raise FormatError(
                f"{index} lists the shard {shard!r}, which is not a file beside it. Fetch all files of the "
                f"checkpoint into one folder; files elsewhere are never read."
            )
        file = unpacked(read_file(path), path)
        metadata = {**file.metadata, **metadata}
        for name, _ in entries:
            if name not in file.tensors:
                raise FormatError(f"{path} lacks the tensor {name!r} that {index.name} lists. Fetch both again.")
            tensors[name] = file.tensors[name]
    return TensorFile(tensors, metadata)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError("it is too large for an index")
        content = json.loads(index.read_bytes())
        listed = content["weight_map"]
        if not all(isinstance(shard, str) for shard in listed.values()):
            raise TypeError("a shard is not a name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{index} is not the index of a sharded checkpoint ({error}). It should hold a JSON object whose "
            f"weight_map gives each tensor's file. Fetch it again."
        ) from None
    return dict(listed)


def _open_onnx(path: Path) -> TensorFile:
    from sparsify.formats import onnx

    return onnx.read_tensors(path)


def _without_wrappers(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names without the prefixes that training wrappers put before all of them."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _without_wrappers({name.removeprefix(prefix): t for name, t in tensors.items()})
    return tensors


def _with_masks(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """torch.nn.utils.prune's pairs `x_orig` and `x_mask` as the weight x; it is +0.0 outside its mask."""
    result = {}
    for name, tensor in tensors.items():
        plain = name.removesuffix("_orig")
        mask = tensors.get(f"{plain}_mask")
        owner = name.removesuffix("_mask")
        if name != plain and mask is not None and mask.shape == tensor.shape and plain not in tensors:
            result[plain] = _masked(tensor, mask)
        elif not (name != owner and f"{owner}_orig" in tensors and owner not in tensors):
            result[name] = tensor
    return result


def _masked(tensor: StoredTensor, mask: StoredTensor) -> StoredTensor:
    def chunks() -> Iterator[np.ndarray]:
        for values, present in zip(tensor.chunks(), mask.chunks(), strict=True):
            yield np.where(present != 0, values, 0).astype(values.dtype)

    return replace(tensor, chunks=chunks)
