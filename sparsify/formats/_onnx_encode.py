"""Weights of an ONNX graph in other forms: packed (blocked offsets), as sparse tensors, or dense in fewer bits.

docs/format.md, section 2, is the specification. Every encoded weight keeps its name, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparsify.errors import FormatError
from sparsify.formats import _blocked
from sparsify.formats._bits import cast, of_array, of_float32, to_float32, unsigned
from sparsify.formats._onnx_constants import EXPANSION
from sparsify.registry import unknown

FOLD_LIMIT = 1 << 30  # bytes; onnxruntime does not fold what is larger
TYPES: dict[str, int] = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
NAMES: dict[int, str] = {element: name for name, element in TYPES.items()}
OPERATORS = 11  # first opset with ScatterElements
OPERATORS_BFLOAT16 = 13


@dataclass(frozen=True)
class Encoded:
    """What takes the place of an initializer."""

    initializers: list[TensorProto]
    nodes: list[onnx.NodeProto]

    def nbytes(self) -> int:
        return sum(part.ByteSize() for part in [*self.initializers, *self.nodes])


def encode_weights(proto: onnx.ModelProto, encoding: str, values: str | None, path: Path) -> list[str]:
    """Replace weights of the graph by their encoded form where that is smaller; return their names.

    values: name of a safetensors type for the stored values, which become the weights' own type again by a Cast.
    Raises FormatError for encodings that do not exist, values too large for their type and graphs of too old an
    opset.
    """
    if encoding not in ENCODERS:
        raise FormatError(unknown("encoding of ONNX weights", encoding.replace("_", "-"), ENCODERS))
    encoded: dict[str, Encoded] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type in NAMES and len(tensor.dims) > 1:
            found = ENCODERS[encoding](tensor, values or NAMES[tensor.data_type])
            if found is not None and found.nbytes() < tensor.ByteSize():
                encoded[tensor.name] = found
    if encoded:
        _check_opset(proto, values, path)
        _replace(proto.graph, encoded)
    return list(encoded)


def rounded(proto: onnx.ModelProto, values: str) -> None:
    """Round every weight to the values of a type, in the type that it has. Raises FormatError for overflow."""
    for tensor in proto.graph.initializer:
        if tensor.data_type in NAMES and len(tensor.dims) > 1:
            own = NAMES[tensor.data_type]
            numbers = to_float32(_bits(tensor), own)
            bits = cast(of_array(numbers, tensor.name), values, tensor.name).bits()
            replace_data(tensor, of_float32(to_float32(bits, values), own))


def replace_data(tensor: TensorProto, bits: np.ndarray) -> None:
    """Give an initializer other contents of the same type and shape."""
    fresh = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=bits.tobytes())
    tensor.CopyFrom(fresh)


def node_prefix(name: str) -> str:
    """What the names of the nodes that decode a weight begin with."""
    return f"sparsify/{name}/"


def _dense(tensor: TensorProto, values: str) -> Encoded | None:
    own = NAMES[tensor.data_type]
    if values == own:
        return None
    stored = _initializer(f"{tensor.name}.values", _converted(_bits(tensor), own, values), values, tensor.dims)
    return Encoded([stored], [_node(tensor.name, "Cast", [stored.name], tensor.name, to=tensor.data_type)])


def _packed(tensor: TensorProto, values: str) -> Encoded | None:
    name, own = tensor.name, NAMES[tensor.data_type]
    bits = _bits(tensor)
    positions = np.flatnonzero(bits << 1)  # the sign of -0.0 does not count
    foldable = bits.size <= _blocked.MAX_SIZE and bits.nbytes < FOLD_LIMIT
    if not foldable or len(positions) * EXPANSION < bits.nbytes or len(positions) > 0.95 * bits.size:
        return None
    blocked = _blocked.encode(positions, unsigned(values).itemsize)
    stored = _converted(bits[positions[blocked.order]], own, values)
    arrays = {
        "blocks": blocked.blocks,
        "offsets": blocked.offsets,
        "flat": np.array([-1]),
        "size": np.array([bits.size]),
        "shape": np.array(tensor.dims),
    }
    if blocked.groups is not None:
        arrays["groups"] = blocked.groups
    initializers = [onnx.numpy_helper.from_array(array, f"{name}.{part}") for part, array in arrays.items()]
    initializers.append(_initializer(f"{name}.values", stored, values, [len(stored)]))
    return Encoded(initializers, _decoding(tensor, values, blocked.groups is not None))


def _decoding(tensor: TensorProto, values: str, groups: bool) -> list[onnx.NodeProto]:
    """Operators that put the stored values into zeros."""
    name, own = tensor.name, NAMES[tensor.data_type]
    nodes, total, elements = [], f"{name}.blocks", f"{name}.values"
    for part in ("groups", "offsets") if groups else ("offsets",):
        nodes.append(_node(name, "Cast", [f"{name}.{part}"], f"{name}.{part}.int32", to=TensorProto.INT32))
        nodes.append(_node(name, "Add", [total, f"{name}.{part}.int32"], f"{name}.to_{part}"))
        total = f"{name}.to_{part}"
    nodes.append(_node(name, "Reshape", [total, f"{name}.flat"], f"{name}.positions"))
    if values != own:
        elements = f"{name}.values.cast"
        nodes.append(_node(name, "Cast", [f"{name}.values"], elements, to=tensor.data_type))
    zero = _initializer("", np.zeros(1, unsigned(own)), own, [1])
    nodes.append(_node(name, "ConstantOfShape", [f"{name}.size"], f"{name}.zeros", value=zero))
    scatter = [f"{name}.zeros", f"{name}.positions", elements]
    nodes.append(_node(name, "ScatterElements", scatter, f"{name}.scattered", axis=0))
    nodes.append(_node(name, "Reshape", [f"{name}.scattered", f"{name}.shape"], name))
    return nodes


def _sparse_tensor(tensor: TensorProto, values: str) -> Encoded | None:
    name, own = tensor.name, NAMES[tensor.data_type]
    bits = _bits(tensor)
    positions = np.flatnonzero(bits << 1)
    if not len(positions) or len(positions) * EXPANSION < bits.nbytes:
        return None
    stored = _initializer(f"{name}.values", _converted(bits[positions], own, values), values, [len(positions)])
    # As repeated numbers positions take two to five bytes each; as raw data they would take eight.
    indices = helper.make_tensor(f"{name}.indices", TensorProto.INT64, [len(positions)], positions)
    sparse = helper.make_sparse_tensor(stored, indices, list(tensor.dims))
    output = name if values == own else f"{name}.sparse"
    nodes = [_node(name, "Constant", [], output, sparse_value=sparse)]
    if values != own:
        nodes.append(_node(name, "Cast", [output], name, to=tensor.data_type))
    return Encoded([], nodes)


ENCODERS: dict[str, Callable[[TensorProto, str], Encoded | None]] = {
    "dense": _dense,
    "packed": _packed,
    "sparse-tensor": _sparse_tensor,
}


def _replace(graph: onnx.GraphProto, encoded: dict[str, Encoded]) -> None:
    kept = [tensor for tensor in graph.initializer if tensor.name not in encoded]
    added = [part for replacement in encoded.values() for part in replacement.initializers]
    replace_all(graph.initializer, [*kept, *added])
    replace_all(graph.node, [*(node for new in encoded.values() for node in new.nodes), *graph.node])
    # Before IR version 4 weights were inputs too, which callers may override; what is computed cannot be.
    replace_all(graph.input, [value for value in graph.input if value.name not in encoded])


def replace_all(field: object, content: Iterable[object]) -> None:
    """Put `content` in the place of all that a repeated field holds."""
    content = list(content)
    del field[:]  # type: ignore[attr-defined]
    field.extend(content)  # type: ignore[attr-defined]


def _check_opset(proto: onnx.ModelProto, values: str | None, path: Path) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    needed = OPERATORS_BFLOAT16 if values == "BF16" else OPERATORS
    if opset < needed:
        raise FormatError(
            f"{path} is of ONNX opset {opset}, which lacks the operators that decode weights. Convert it to opset "
            f"{needed} or newer first, for example with onnx.version_converter, or use --encoding dense."
        )


def _bits(tensor: TensorProto) -> np.ndarray:
    """The elements of an initializer as unsigned integers, flat."""
    array = onnx.numpy_helper.to_array(tensor)
    return np.ascontiguousarray(array).reshape(-1).view(unsigned(NAMES[tensor.data_type]))


def _converted(bits: np.ndarray, own: str, values: str) -> np.ndarray:
    return bits if own == values else of_float32(to_float32(bits, own), values)


def _initializer(name: str, bits: np.ndarray, dtype: str, dims: Iterable[int]) -> TensorProto:
    return TensorProto(name=name, data_type=TYPES[dtype], dims=list(dims), raw_data=bits.tobytes())


def _node(weight: str, operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    name = node_prefix(weight) + output.removeprefix(weight).strip(".")
    return helper.make_node(operator, inputs, [output], name=name, **attributes)
