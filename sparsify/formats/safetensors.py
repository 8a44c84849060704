"""safetensors: dense, masked weights that any tool reads, with our metadata in the header.

The file is written here and not by the library, which orders its metadata at random: same input, same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from sparsify.errors import FormatError
from sparsify.files import write_with
from sparsify.formats import SparseModel, Written, check_against_metadata
from sparsify.formats._metadata import KEY, parse_metadata
from sparsify.topology.costs import Layer

SUFFIX = ".safetensors"
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def write(model: SparseModel, path: Path) -> Written:
    """Write the dense, masked form; the same model gives the same bytes. Raises DiskError."""
    names = sorted(model.tensors, key=lambda name: (-model.tensors[name].dtype.itemsize, name))
    header = _header(model, names)

    def fill(file: BinaryIO) -> None:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            file.write(np.ascontiguousarray(model.tensors[name]).tobytes())

    write_with(path, fill)
    return Written(path, path.stat().st_size, read(path).digest())


def read(path: Path) -> SparseModel:
    """Read a file of ours or of anybody's. Raises FormatError where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path} is not a readable safetensors file ({error}). It was cut short, damaged, or holds a type "
            f"that numpy lacks. Copy or export it again."
        ) from None
    if KEY not in metadata:
        return SparseModel(tensors, _guess_layers(tensors), None)
    record = parse_metadata(metadata[KEY], path)
    layers = [Layer(name, tuple(layer.shape), layer.positions, layer.sparse) for name, layer in record.layers.items()]
    return check_against_metadata(SparseModel(tensors, layers, record), path)


def _header(model: SparseModel, names: list[str]) -> bytes:
    """JSON padded with spaces to a multiple of 8, so that the data behind it is aligned."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    if model.metadata is not None:
        entries["__metadata__"] = {"format": "pt", KEY: model.metadata.model_dump_json()}
    start = 0
    for name in names:
        tensor = model.tensors[name]
        if tensor.dtype.name not in DTYPES:
            raise FormatError(f"{name} is of type {tensor.dtype}, which safetensors cannot hold. Convert it first.")
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _guess_layers(tensors: dict[str, np.ndarray]) -> list[Layer]:
    """Matrices and kernels of a file without metadata; how often each is used is not known."""
    return [Layer(name, t.shape, 0) for name, t in tensors.items() if t.ndim > 1 and t.dtype.kind == "f"]
