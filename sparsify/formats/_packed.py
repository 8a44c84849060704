"""Sparse safetensors: tensors as pairs of values and positions. docs/format.md, section 1. numpy alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import FormatError
from sparsify.formats._bits import CHUNK, FLOATS, StoredTensor, unsigned
from sparsify.formats._header import TensorFile, is_shape
from sparsify.formats._positions import ENCODINGS, bitmask_parts, cheapest, cheapest_of, decode

KEY = "sparse_tensors"
VERSION = 1
OVERHEAD = 256  # bytes that a second entry in the header costs, and more; a pair has to save this much


@dataclass(frozen=True, eq=False)
class Pair:
    """A packed tensor in memory."""

    values: np.ndarray  # [nnz], unsigned integers of the element's width
    encoding: str
    positions: np.ndarray  # [bytes] uint8


Mask = np.ndarray | Iterable[np.ndarray]  # [⌈n/8⌉] uint8, whole or in parts


def pack(tensor: StoredTensor, live: np.ndarray | None = None) -> tuple[Pair | None, Mask]:
    """Values and positions of a tensor, or None where that is no smaller; and its mask.

    live: ascending flat positions to be stored although their value is 0. Reads the tensor once, chunk by
    chunk; beside the result it takes one chunk of memory, and 8 bytes a stored element while gaps are made.
    """
    if tensor.entries is not None:
        return _pack_entries(tensor, live)
    values: list[np.ndarray] = []
    bits, masks, stored = [], [], 0
    most = tensor.nbytes - OVERHEAD  # bytes that the pair may have
    for number, chunk in enumerate(tensor.chunks()):
        present = chunk != 0
        if live is not None:
            start = number * CHUNK
            present[live[np.searchsorted(live, start) : np.searchsorted(live, start + len(chunk))] - start] = True
        bits.append(np.packbits(present, bitorder="little"))
        masks.append(_mask(chunk, present, bits[-1], tensor.dtype))
        places = np.flatnonzero(present)
        stored += len(places)
        if stored * tensor.width + min(tensor.size / 8, stored / 2) > most:
            values.clear()  # it stays dense, whatever follows; the mask is still wanted
        else:
            values.append(chunk[places])
    mask = np.concatenate(masks) if masks else np.zeros(0, np.uint8)
    if stored * tensor.width + min(tensor.size / 8, stored / 2) > most:
        return None, mask
    encoding, positions = cheapest(np.concatenate(bits), tensor.size, stored)
    if stored * tensor.width + len(positions) > most:
        return None, mask
    return Pair(np.concatenate(values), encoding, positions), mask


def _pack_entries(tensor: StoredTensor, live: np.ndarray | None) -> tuple[Pair | None, Mask]:
    """`pack` of a tensor whose elements that are not 0 are known: nothing of its size is made."""
    assert tensor.entries is not None
    positions, bits = tensor.entries()
    present = bits != 0
    if live is not None:
        present[np.searchsorted(positions, live)] = True
    positions, bits = positions[present], bits[present]
    mask = bitmask_parts(positions[_nonzero(bits, tensor.dtype)], tensor.size)
    most = tensor.nbytes - OVERHEAD
    if bits.nbytes + min(tensor.size / 8, len(bits) / 2) > most:
        return None, mask
    encoding, codes = cheapest_of(positions, tensor.size)
    return (Pair(bits, encoding, codes) if bits.nbytes + len(codes) <= most else None), mask


def mask_of(tensor: StoredTensor) -> Mask:
    """Where a tensor is not 0."""
    if tensor.entries is not None:
        positions, bits = tensor.entries()
        return bitmask_parts(positions[_nonzero(bits, tensor.dtype)], tensor.size)
    masks = [np.packbits(_nonzero(chunk, tensor.dtype), bitorder="little") for chunk in tensor.chunks()]
    return np.concatenate(masks) if masks else np.zeros(0, np.uint8)


def _mask(chunk: np.ndarray, present: np.ndarray, bits: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of the elements that are not 0, from those of the elements that are stored."""
    nonzero = _nonzero(chunk, dtype)
    return bits if np.array_equal(nonzero, present) else np.packbits(nonzero, bitorder="little")


def _nonzero(chunk: np.ndarray, dtype: str) -> np.ndarray:
    found: np.ndarray = chunk << 1 != 0 if dtype in FLOATS else chunk != 0  # the sign of -0.0 does not count
    return found


def part_names(name: str) -> list[str]:
    """Every name that a pair of this tensor could use."""
    return [f"{name}.values", *(f"{name}.{encoding}" for encoding in ENCODINGS)]


def unpacked(file: TensorFile, path: Path) -> TensorFile:
    """The file with its pairs replaced by the tensors that they stand for; nothing is decoded yet.

    A file without pairs is returned as it is. Raises FormatError where the index breaks a rule.
    """
    if KEY not in file.metadata:
        return file
    tensors = dict(file.tensors)
    for name, (encoding, shape) in read_index(file, path).items():
        values, positions = tensors.pop(f"{name}.values", None), tensors.pop(f"{name}.{encoding}", None)
        if values is None or positions is None:
            raise broken(path, f"one of the pair that {name!r} is packed into is missing")
        if name in tensors:
            raise broken(path, f"{name!r} is in it both dense and packed")
        if len(values.shape) != 1 or len(positions.shape) != 1 or positions.dtype != "U8":
            raise broken(path, f"the pair of {name!r} is not one row of values and one of bytes")
        given = values, positions, math.prod(shape), encoding, name, path
        chunks, entries = partial(_decoded_chunks, *given), partial(_decoded_entries, *given)
        tensors[name] = StoredTensor(values.dtype, shape, chunks, entries)
    digest = _load_index(file.metadata[KEY], path).get("mask_digest")
    metadata = {key: value for key, value in file.metadata.items() if key != KEY}
    return TensorFile(tensors, metadata, digest if isinstance(digest, str) else None)


def read_index(file: TensorFile, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Encoding and dense shape of each packed tensor."""
    index = _load_index(file.metadata[KEY], path)
    if index.get("version") != VERSION or type(index["version"]) is not int:
        raise broken(path, f"its version is {index.get('version')!r}; this release reads version {VERSION}")
    entries = index.get("tensors")
    if not isinstance(entries, dict):
        raise broken(path, "it lacks the table of packed tensors")
    found = {}
    for name, entry in entries.items():
        fields = entry if isinstance(entry, dict) else {}
        encoding, shape = fields.get("encoding"), fields.get("shape")
        if not isinstance(encoding, str) or encoding not in ENCODINGS or not is_shape(shape):
            raise broken(path, f"the entry of {name!r} lacks a known encoding or a list of sizes")
        found[name] = (encoding, tuple(fields["shape"]))
    return found


def broken(path: Path, found: str) -> FormatError:
    """The error for a file whose pairs break a rule."""
    return FormatError(
        f"{path} breaks the rules of sparse safetensors files: {found}. It was changed, damaged or made by a "
        f"faulty program. Export it again; docs/format.md has the rules."
    )


def index_text(pairs: Mapping[str, tuple[str, tuple[int, ...]]], digest: str) -> str:
    """The JSON that names the packed tensors."""
    entries = {name: {"encoding": encoding, "shape": list(shape)} for name, (encoding, shape) in pairs.items()}
    return json.dumps({"version": VERSION, "tensors": entries, "mask_digest": digest}, separators=(",", ":"))


def _load_index(text: str, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(text)
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise broken(path, f"its entry {KEY} is not a JSON object")
    return index


def _decoded(
    values: StoredTensor, positions: StoredTensor, size: int, encoding: str, name: str, path: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ascending positions and their bits, some at a time."""
    data, stored, used = positions.bits(), values.bits(), 0
    try:
        for places in decode(data, size, encoding):
            if used + len(places) > len(stored):
                raise FormatError(f"there are more positions than its {len(stored)} values")
            yield places, stored[used : used + len(places)]
            used += len(places)
        if used < len(stored):
            raise FormatError(f"there are {len(stored)} values but {used} positions")
    except FormatError as error:
        raise broken(path, f"in {name!r} {error}") from None


def _decoded_entries(values: StoredTensor, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
    parts = list(_decoded(values, *rest))
    empty = np.zeros(0, np.int64), np.zeros(0, unsigned(values.dtype))
    places, bits = zip(empty, *parts, strict=True)
    return np.concatenate(places), np.concatenate(bits)


def _decoded_chunks(values: StoredTensor, positions: StoredTensor, size: int, *rest: Any) -> Iterator[np.ndarray]:
    """The tensor in full, a chunk at a time; those without elements too."""
    parts, start = _decoded(values, positions, size, *rest), 0
    places, bits = next(parts, (np.zeros(0, np.int64), np.zeros(0)))  # damage shows here, before a chunk is made
    while start < size:
        chunk = np.zeros(min(CHUNK, size - start), unsigned(values.dtype))
        while True:
            count = int(np.searchsorted(places, start + len(chunk)))
            chunk[places[:count] - start] = bits[:count]
            places, bits = places[count:], bits[count:]
            if len(places):
                break
            following = next(parts, None)
            if following is None:
                break
            places, bits = following
        start += len(chunk)
        yield chunk
