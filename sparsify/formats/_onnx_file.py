"""ONNX models opened: a graph in memory, and weights that are read when they are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import FormatError
from sparsify.formats._bits import StoredTensor, file_chunks, of_array, unsigned
from sparsify.onnx_scan import SMALL, scan

DATA = ".data"  # suffix of the file that we write beside a model above 2 GB
# Element types by the names that safetensors gives them. Tensors of other types stay in the graph.
TYPES: dict[str, int] = {
    "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "F64": TensorProto.DOUBLE,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN, "F8_E5M2": TensorProto.FLOAT8E5M2, "C64": TensorProto.COMPLEX64,
    "BOOL": TensorProto.BOOL, "U8": TensorProto.UINT8, "I8": TensorProto.INT8, "U16": TensorProto.UINT16,
    "I16": TensorProto.INT16, "U32": TensorProto.UINT32, "I32": TensorProto.INT32, "U64": TensorProto.UINT64,
    "I64": TensorProto.INT64,
}  # fmt: skip
NAMES: dict[int, str] = {element: name for name, element in TYPES.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxModel:
    """A graph without its initializers, and these by name in the graph's order, read when they are needed."""

    proto: onnx.ModelProto
    tensors: dict[str, StoredTensor]

    def with_tensors(self, tensors: Mapping[str, StoredTensor]) -> OnnxModel:
        """The same graph, with some tensors in another form or besides."""
        return OnnxModel(self.proto, {**self.tensors, **tensors})

    def copy(self) -> OnnxModel:
        """A model whose graph can be changed without changing this one's."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return OnnxModel(proto, dict(self.tensors))

    def nbytes(self) -> int:
        return self.proto.ByteSize() + sum(tensor.nbytes for tensor in self.tensors.values())

    def outline(self) -> onnx.ModelProto:
        """The model for shape inference: small initializers with their values, others by type and shape alone."""
        model = self.copy().proto
        for name, tensor in self.tensors.items():
            if tensor.nbytes < SMALL:
                model.graph.initializer.append(_inline(name, tensor))
            elif all(value.name != name for value in model.graph.input):
                model.graph.input.append(helper.make_tensor_value_info(name, TYPES[tensor.dtype], tensor.shape))
        return model


def open_model(path: Path) -> OnnxModel:
    """Open a model file; of its weights nothing is read yet. Raises FormatError where it is damaged."""
    try:
        skeleton, entries = scan(path)
        proto = onnx.ModelProto.FromString(skeleton)
        model = OnnxModel(proto, {})
        for entry in entries:
            _add(model, TensorProto.FromString(entry.head), entry.raw, path)
    except (DecodeError, OSError, ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise damaged(path, str(error).split("\n")[0][:300]) from None
    if not proto.graph.node:
        raise damaged(path, "it holds no graph")
    return model


def of_proto(proto: onnx.ModelProto) -> OnnxModel:
    """A model in memory; the initializers are taken out of `proto`."""
    model = OnnxModel(proto, {})
    initializers = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in initializers:
        _add_inline(model, tensor)
    return model


def _add(model: OnnxModel, tensor: TensorProto, raw: tuple[int, int] | None, path: Path) -> None:
    """raw: start and length of the raw data in the model's file, where it is there and large."""
    if not isinstance(tensor.name, str):
        raise ValueError("a name in it is not text")
    external = tensor.data_location == TensorProto.EXTERNAL
    if raw is None and not external:
        return _add_inline(model, tensor)
    file, start, length = _external(tensor, path) if external else (path, *(raw or (0, 0)))
    if tensor.data_type not in NAMES:
        with file.open("rb") as data:
            data.seek(start)
            tensor.raw_data = data.read(length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        model.proto.graph.initializer.append(tensor)
        return None
    dtype, shape = NAMES[tensor.data_type], tuple(tensor.dims)
    stored = StoredTensor(dtype, shape, _nothing)
    if min(shape, default=0) < 0 or stored.nbytes != length:
        raise ValueError(f"{tensor.name!r} of shape {list(shape)} needs {stored.nbytes} bytes but has {length}")
    chunks = partial(file_chunks, file, start, stored.size, unsigned(dtype), partial(damaged, path))
    model.tensors[tensor.name] = dataclasses.replace(stored, chunks=chunks)
    return None


def _add_inline(model: OnnxModel, tensor: TensorProto) -> None:
    if tensor.data_type in NAMES:
        model.tensors[tensor.name] = of_array(numpy_helper.to_array(tensor), tensor.name)
    else:
        model.proto.graph.initializer.append(tensor)


def _external(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """File, start and length of external data. Raises ValueError where it is not in the model's own folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    folders = (path.parent.resolve(), path.resolve().parent)  # of a link, and of what it points to
    inside = any(file.resolve().is_relative_to(folder) for folder in folders)
    if not location or not inside or not file.is_file():
        raise ValueError(f"{tensor.name!r} lies in {location!r}, which is not a file in the model's folder")
    start, size = int(entries.get("offset", 0)), file.stat().st_size
    length = int(entries.get("length", size - start))
    if start < 0 or length < 0 or start + length > size:
        raise ValueError(f"{tensor.name!r} lies outside of the {size} bytes of {location!r}")
    return file, start, length


def array_of(tensor: StoredTensor) -> np.ndarray:
    """As ONNX's own functions have it: bfloat16 and float8 as the types of ml_dtypes."""
    return tensor.bits().view(helper.tensor_dtype_to_np_dtype(TYPES[tensor.dtype])).reshape(tensor.shape)


def size_on_disk(path: Path) -> int:
    """Bytes of a model and of the external data file that we write beside it."""
    data = path.with_name(path.name + DATA)
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def damaged(path: Path, found: str) -> FormatError:
    """The error for a file that is no model."""
    return FormatError(
        f"{path} is not a readable ONNX model ({found}). It was cut short or damaged. Copy or export it again."
    )


def _nothing() -> Iterator[np.ndarray]:
    return iter(())


def _inline(name: str, tensor: StoredTensor) -> TensorProto:
    raw = tensor.bits().tobytes()
    return TensorProto(name=name, data_type=TYPES[tensor.dtype], dims=tensor.shape, raw_data=raw)
