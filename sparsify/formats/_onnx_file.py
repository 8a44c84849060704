"""ONNX models on disk: one file, or above 2 GB a second one for the weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from sparsify.errors import FormatError

LARGEST = 2_000_000_000  # bytes of weights in a model file; protobuf ends at 2^31
SMALL = 1024  # bytes; tensors below stay in the model file, where shape inference can see them
ALIGNMENT = 64
DATA = ".data"  # suffix of the file for the rest


def load(path: Path) -> onnx.ModelProto:
    """The model in a file, with its external data. Raises FormatError where there is none."""
    try:
        proto = onnx.load(path)
    except (DecodeError, OSError, ValueError, TypeError, KeyError, onnx.checker.ValidationError) as error:
        raise damaged(path, str(error).split("\n")[0][:300]) from None
    if not proto.graph.node:
        raise damaged(path, "it holds no graph")
    return proto


def save(proto: onnx.ModelProto, path: Path, largest: int = LARGEST) -> None:
    """Write a model; weights go into `path`.data where there are more than `largest` bytes of them.

    Raises FormatError where even so the model is too large for its form. The model in memory stays as it was.
    """
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) >= SMALL]
    moved: list[bytes] = []
    if sum(len(tensor.raw_data) for tensor in weights) > largest:
        with path.with_name(path.name + DATA).open("wb") as data:
            for tensor in weights:
                data.write(b"\0" * (-data.tell() % ALIGNMENT))
                moved.append(tensor.raw_data)
                _point_to(tensor, path.name + DATA, data.tell())
                data.write(moved[-1])
    try:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise FormatError(
            f"{path.name} cannot be written: it would pass the 2 GB that a model file may have even with its weights "
            f"in a file beside it ({error}). Split the model."
        ) from None
    finally:
        for tensor, raw in zip(weights, moved, strict=False):
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = raw


def _point_to(tensor: onnx.TensorProto, location: str, offset: int) -> None:
    onnx.external_data_helper.set_external_data(tensor, location, offset=offset, length=len(tensor.raw_data))
    tensor.ClearField("raw_data")


def size_on_disk(path: Path) -> int:
    """Bytes of a model and of the external data file that we write beside it."""
    data = path.with_name(path.name + DATA)
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def damaged(path: Path, found: str) -> FormatError:
    """The error for a file that is no model."""
    return FormatError(
        f"{path} is not a readable ONNX model ({found}). It was cut short or damaged. Copy or export it again."
    )
