"""Weights of a model file, whatever their form: dense, sparse, in a file beside the model."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sparsify.engine.limits import LIMITS, Budget, check_shape
from sparsify.engine.nonzeros import LARGE, Weight, packed
from sparsify.engine.unread import Bytes, OpenFile, Source, Unread, canonical, counted
from sparsify.errors import EngineError

Array = np.ndarray[Any, Any]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

MOST_OPEN = 64  # files beside a model; those beyond that are read into memory


@dataclass(frozen=True)
class Raw:
    """Where a tensor's raw data lie."""

    source: Source
    start: int
    length: int

    def read(self) -> Array:
        """The data: uint8 [length]."""
        data = np.empty(self.length, np.uint8)
        self.source.read(self.start, data)
        return data


class Folder:
    """The files beside a model, each opened once."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._sources: dict[Path, Source] = {}

    def source(self, path: Path) -> Source:
        """A file's bytes."""
        if path not in self._sources:
            is_many = len(self._sources) >= MOST_OPEN
            self._sources[path] = Bytes(path.read_bytes()) if is_many else OpenFile(path)
        return self._sources[path]


def dtype_of(element: int) -> str:
    """numpy's name of an ONNX element type; every floating point becomes float32."""
    return "float32" if element in FLOATS else numpy_dtype(element).name


def numpy_dtype(element: int) -> np.dtype[Any]:
    """numpy's dtype for an ONNX element type. Raises EngineError where there is none."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(element)
    except KeyError:
        raise EngineError(
            f"The model uses tensor element type {element}, which this release does not know. The file is "
            f"damaged, or needs a newer release of the onnx package."
        ) from None


def _check(tensor: TensorProto) -> int:
    name = f"The weight '{tensor.name}'"
    return check_shape(name, tuple(tensor.dims), numpy_dtype(tensor.data_type).name)


def initializer(tensor: TensorProto, folder: Folder | None, raw: Raw | None = None) -> Weight:
    """A tensor's values as `to_array` gives them; large ones of floating point stay in their file.

    raw: where its data are, where the tensor does not hold them.
    """
    size = _check(tensor) // numpy_dtype(tensor.data_type).itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external_data(tensor, folder)
    if raw is not None and tensor.data_type in FLOATS and LARGE <= size < 2**31 and sys.byteorder == "little":
        stored = numpy_dtype(tensor.data_type)
        if raw.length == size * stored.itemsize:
            return counted(Unread(tuple(tensor.dims), raw.source, raw.start, stored))
    return packed(_array(tensor, None if raw is None else raw.read()))


def to_array(tensor: TensorProto, folder: Folder | None) -> Array:
    """A tensor's values, float32 for all floating point. Raises EngineError where it is incomplete.

    folder: where external data may lie; None where there is none, as with a model given as bytes.
    """
    _check(tensor)
    is_external = tensor.data_location == TensorProto.EXTERNAL
    return _array(tensor, _external_data(tensor, folder).read() if is_external else None)


def _array(tensor: TensorProto, raw: Array | None) -> Array:
    """raw: its data (uint8), where the tensor does not hold them; they may be written over."""
    try:
        dtype = numpy_dtype(tensor.data_type)
        if raw is None or dtype.isbuiltin != 1 or sys.byteorder != "little":
            if raw is not None:
                tensor = TensorProto(
                    name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, raw_data=raw.tobytes()
                )
            stored = numpy_helper.to_array(tensor)
        else:
            return canonical(raw.view(dtype).reshape(tuple(tensor.dims)), is_owned=True)
        found = canonical(stored)
        # a view into the parsed message would keep all of it alive
        return np.array(found) if found is stored or not found.flags.owndata else found
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(
            f"The weight '{tensor.name}' of shape {tuple(tensor.dims)} does not have the data that its shape "
            f"asks for ({error}). The file is damaged or was cut short; write or fetch it again."
        ) from error


def _external_data(tensor: TensorProto, folder: Folder | None) -> Raw:
    """Where a tensor's bytes are in the file beside the model."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise EngineError(
            f"The weight '{tensor.name}' lies in the external file '{location}', but the model was given as "
            f"bytes. Open the model by its path, with that file beside it."
        )
    path = (folder.path / location).resolve()
    if not location or not path.is_relative_to(folder.path) or not path.is_file():
        raise EngineError(
            f"The weight '{tensor.name}' lies in the external file '{location}', which is not a file in the "
            f"model's folder. Copy it there; files elsewhere are never read."
        )
    wanted = math.prod(tensor.dims) * numpy_dtype(tensor.data_type).itemsize
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", wanted))
    except ValueError:
        offset = length = -1
    try:
        source = folder.source(path)
    except OSError as error:
        raise EngineError(f"The external file '{location}' of the model cannot be read: {error}.") from error
    if offset < 0 or length != wanted or offset + length > min(source.size, LIMITS.external_bytes):
        raise EngineError(
            f"The external file '{location}' does not hold the {wanted} bytes of the weight '{tensor.name}' "
            f"at the place that the model names. It was cut short or is another model's; fetch both again."
        )
    return Raw(source, offset, length)


def sparse_to_array(sparse: onnx.SparseTensorProto, folder: Folder | None, budget: Budget) -> Array:
    """ONNX's sparse tensor as a dense array: indices are flat [nnz] or coordinates [nnz, rank]."""
    name = sparse.values.name
    shape = tuple(sparse.dims)
    values = to_array(sparse.values, folder)
    indices = to_array(sparse.indices, folder)
    size = math.prod(shape)
    budget.spend(check_shape(f"The sparse weight '{name}'", shape, str(values.dtype)))
    if indices.ndim == 2 and indices.shape == (values.size, len(shape)):
        inside = np.all((indices >= 0) & (indices < np.array(shape)))
        flat = np.ravel_multi_index(tuple(indices.T), shape) if inside else np.array([size])
    else:
        flat = indices
    if flat.dtype.kind != "i" or flat.shape != values.shape or values.ndim != 1:
        raise _sparse_error(name, f"{values.shape} values cannot have indices {indices.shape}")
    if flat.size and (flat.min() < 0 or flat.max() >= size):
        raise _sparse_error(name, f"an index lies outside of the shape {shape}")
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _sparse_error(name: str, what: str) -> EngineError:
    return EngineError(
        f"The sparse weight '{name}' cannot be unpacked: {what}. The file is damaged, or was written by a "
        f"tool that does not follow the ONNX standard; write it again."
    )
