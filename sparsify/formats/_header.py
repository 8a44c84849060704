"""The header of a safetensors file, read with suspicion: one named error for each way to be wrong.

The library opens such files too, but not those that hold element types numpy lacks, and a header has to be
checked before a tensor is read chunk by chunk.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparsify.errors import FormatError
from sparsify.formats._bits import WIDTHS, StoredTensor, file_chunks, unsigned

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True)
class TensorFile:
    """Tensors by name, in the order in which they lie on disk, and what the file says of itself."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    mask_digest: str | None = None  # of its weights, where a packed file states it


def read_file(path: Path) -> TensorFile:
    """Read and check a header; no tensor is read. Raises FormatError that says which rule is broken."""
    try:
        with path.open("rb") as file:
            return _parse(path, file.read(8), file.read)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None


def damaged(path: Path, found: str) -> FormatError:
    """The error for a file that breaks a rule."""
    return FormatError(
        f"{path} is not a readable safetensors file: {found}. It was cut short, damaged or made by a faulty "
        f"program. Copy or export it again."
    )


def _parse(path: Path, prefix: bytes, read: Any) -> TensorFile:
    size = path.stat().st_size
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
        raise damaged(path, f"its {size} bytes are fewer than the 8 that state the header's length")
    if length > MAX_HEADER:
        raise damaged(path, f"it states a header of {length:,} bytes, more than the {MAX_HEADER:,} allowed")
    if length > size - 8:
        raise damaged(path, f"its header should be {length} bytes long, but only {size - 8} follow")
    header = _load_json(read(length), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "its metadata is not a table of strings")
    places = sorted(((*_place(entry, name, path), name) for name, entry in header.items()), key=lambda p: p[:2])
    _check_coverage(places, size - 8 - length, path)
    tensors = {}
    for begin, _, dtype, shape, name in places:
        chunks = partial(
            file_chunks, path, 8 + length + begin, math.prod(shape), unsigned(dtype), partial(damaged, path)
        )
        tensors[name] = StoredTensor(dtype, shape, chunks)
    return TensorFile(tensors, metadata)


def _load_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is not JSON ({str(error)[:200]})") from None
    if not isinstance(header, dict):
        raise damaged(path, "its header is not a JSON object")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _place(entry: Any, name: str, path: Path) -> tuple[int, int, str, tuple[int, ...]]:
    """Begin, end, element type and shape of a tensor."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise damaged(path, f"the entry of {name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise damaged(path, f"the type {dtype!r} of {name!r} is not known")
    if not is_shape(shape):
        raise damaged(path, f"the shape {shape!r} of {name!r} is not a list of sizes")
    if not is_shape(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, f"the offsets {offsets!r} of {name!r} are not a beginning and an end")
    wanted = math.prod(shape) * WIDTHS[dtype]
    if wanted != offsets[1] - offsets[0]:
        raise damaged(path, f"{name!r} of shape {shape} needs {wanted} bytes but has {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1], dtype, tuple(shape)


def is_shape(value: object) -> bool:
    """Whether a value from a file is a list of sizes, each small enough for 63 bits, and few."""
    small = isinstance(value, list) and len(value) <= 64
    return small and all(type(extent) is int and 0 <= extent < 2**63 for extent in value)  # type: ignore[attr-defined]


def _check_coverage(places: list[tuple[int, int, str, tuple[int, ...], str]], size: int, path: Path) -> None:
    """Every byte of the data belongs to one tensor."""
    reached = 0
    for begin, end, _, _, name in places:
        if begin != reached:
            relation = "overlaps the one before it" if begin < reached else "leaves a hole before it"
            raise damaged(path, f"{name!r} at byte {begin} {relation}, which ends at {reached}")
        reached = end
    if reached != size:
        raise damaged(path, f"its tensors take {reached} bytes, but {size} follow the header")
