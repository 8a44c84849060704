"""ONNX models written tensor by tensor: one file, or above 2 GB, where protobuf ends, a second one for the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto

from sparsify.errors import FormatError
from sparsify.formats._onnx_file import DATA, TYPES, OnnxModel
from sparsify.formats._writer import read_ahead
from sparsify.onnx_scan import GRAPH, INITIALIZER, RAW_DATA, SMALL, prefix

LARGEST = 2_000_000_000  # bytes of weights in a model file
MESSAGE = 2**31 - 1  # bytes that protobuf allows
ALIGNMENT = 64
Count = Callable[[int], object]  # called with bytes of weights as they are written


def unwatched(count: int) -> None:
    """Nobody asked for progress."""


def save(model: OnnxModel, path: Path, largest: int = LARGEST, watch: Count = unwatched) -> None:
    """Write a model; weights go into `path`.data where there are more than `largest` bytes of them.

    Raises FormatError where even so the model is too large for its form.
    """
    large = {name: tensor for name, tensor in model.tensors.items() if tensor.nbytes >= SMALL}
    heads = {
        name: TensorProto(name=name, data_type=TYPES[tensor.dtype], dims=tensor.shape)
        for name, tensor in model.tensors.items()
    }
    if sum(tensor.nbytes for tensor in large.values()) > largest:
        with path.with_name(path.name + DATA).open("wb") as data:
            for (name, tensor), pieces in read_ahead(large.items()):
                data.write(b"\0" * (-data.tell() % ALIGNMENT))
                _point_to(heads[name], path.name + DATA, data.tell(), tensor.nbytes)
                for piece in pieces:
                    data.write(np.ascontiguousarray(piece).data)
                    watch(piece.nbytes)
    with path.open("wb") as file:
        try:
            _write(model, heads, file, watch)
        except (EncodeError, ValueError) as error:
            raise FormatError(
                f"{path.name} cannot be written: it would pass the 2 GB that a model file may have even with its "
                f"weights in a file beside it ({error}). Split the model."
            ) from None


def _write(model: OnnxModel, heads: Mapping[str, TensorProto], file: BinaryIO, watch: Count) -> None:
    """The model as protobuf would write it, field by field: the graph last, and its initializers last in that."""
    outer = onnx.ModelProto()
    outer.CopyFrom(model.proto)
    outer.ClearField("graph")
    graph = model.proto.graph.SerializeToString(deterministic=True)
    inside = {n: t for n, t in model.tensors.items() if heads[n].data_location != TensorProto.EXTERNAL}
    entries = {}
    for name, head in heads.items():
        content = head.SerializeToString(deterministic=True)
        size = inside[name].nbytes if name in inside else 0
        content += prefix(RAW_DATA, size) if name in inside else b""
        entries[name] = prefix(INITIALIZER, len(content) + size) + content
    length = len(graph) + sum(map(len, entries.values())) + sum(tensor.nbytes for tensor in inside.values())
    if length > MESSAGE:
        raise ValueError(f"{length:,} bytes")
    file.write(outer.SerializeToString(deterministic=True) + prefix(GRAPH, length) + graph)
    file.write(b"".join(entry for name, entry in entries.items() if name not in inside))
    for (name, _), pieces in read_ahead(inside.items()):
        file.write(entries[name])
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
            watch(piece.nbytes)


def _point_to(head: TensorProto, location: str, offset: int, length: int) -> None:
    head.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        head.external_data.add(key=key, value=str(value))
