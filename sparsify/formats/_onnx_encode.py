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
from sparsify.formats._bits import VALUE_TYPES, StoredTensor, cast, of_array, of_bits, unsigned
from sparsify.formats._onnx_constants import EXPANSION
from sparsify.formats._onnx_file import TYPES, OnnxModel
from sparsify.formats._parallel import in_order
from sparsify.registry import unknown

FOLD_LIMIT = 1 << 30  # bytes; onnxruntime does not fold what is larger
OVERHEAD = 24  # bytes that an initializer takes besides its name and content
OPERATORS = 11  # first opset with ScatterElements
OPERATORS_BFLOAT16 = 13


@dataclass(frozen=True)
class Encoded:
    """What takes the place of an initializer."""

    tensors: dict[str, StoredTensor]
    nodes: list[onnx.NodeProto]

    def nbytes(self) -> int:
        stored = sum(tensor.nbytes + len(name) + OVERHEAD for name, tensor in self.tensors.items())
        return stored + sum(node.ByteSize() for node in self.nodes)


def encode_weights(model: OnnxModel, encoding: str, values: str | None, path: Path) -> tuple[OnnxModel, list[str]]:
    """The model with weights in their encoded form where that is smaller, and their names.

    values: name of a safetensors type for the stored values, which become the weights' own type again by a Cast.
    Weights are encoded on several cores. Raises FormatError for encodings that do not exist, values too large for
    their type and graphs of too old an opset.
    """
    if encoding not in ENCODERS:
        raise FormatError(unknown("encoding of ONNX weights", encoding.replace("_", "-"), ENCODERS))
    weights = [(name, tensor) for name, tensor in model.tensors.items() if _is_weight(tensor)]

    def encode(item: tuple[str, StoredTensor]) -> Encoded | None:
        name, tensor = item
        found = ENCODERS[encoding](name, tensor, values or tensor.dtype)
        return found if found and found.nbytes() < tensor.nbytes + len(name) + OVERHEAD else None

    found = in_order(encode, weights, lambda item: 2 * item[1].nbytes)
    encoded = {name: made for (name, _), made in zip(weights, found, strict=True) if made is not None}
    if not encoded:
        return model, []
    _check_opset(model.proto, values, path)
    return _replaced(model, encoded), list(encoded)


def rounded(model: OnnxModel, values: str) -> OnnxModel:
    """Every weight rounded to a type's values, in the type that it has. Reading raises FormatError for overflow."""
    weights = {name: tensor for name, tensor in model.tensors.items() if _is_weight(tensor)}
    return model.with_tensors({name: cast(cast(t, values, name), t.dtype, name) for name, t in weights.items()})


def _is_weight(tensor: StoredTensor) -> bool:
    return tensor.dtype in VALUE_TYPES.values() and len(tensor.shape) > 1


def node_prefix(name: str) -> str:
    """What the names of the nodes that decode a weight begin with."""
    return f"sparsify/{name}/"


def _dense(name: str, tensor: StoredTensor, values: str) -> Encoded | None:
    if values == tensor.dtype:
        return None
    stored = f"{name}.values"
    return Encoded({stored: cast(tensor, values, name)}, [_node(name, "Cast", [stored], name, to=TYPES[tensor.dtype])])


def _packed(name: str, tensor: StoredTensor, values: str) -> Encoded | None:
    if tensor.size > _blocked.MAX_SIZE or tensor.nbytes >= FOLD_LIMIT:
        return None
    bits = tensor.bits()
    positions = np.flatnonzero(bits << 1)  # the sign of -0.0 does not count
    if len(positions) * EXPANSION < bits.nbytes or len(positions) > 0.95 * bits.size:
        return None
    blocked = _blocked.encode(positions, unsigned(values).itemsize)
    arrays = {
        "blocks": blocked.blocks,
        "offsets": blocked.offsets,
        "flat": np.array([-1]),
        "size": np.array([bits.size]),
        "shape": np.array(tensor.shape),
    }
    if blocked.groups is not None:
        arrays["groups"] = blocked.groups
    parts = {f"{name}.{part}": of_array(array, name) for part, array in arrays.items()}
    parts[f"{name}.values"] = cast(of_bits(bits[positions[blocked.order]], tensor.dtype), values, name)
    return Encoded(parts, _decoding(name, tensor.dtype, values, blocked.groups is not None))


def _decoding(name: str, own: str, values: str, groups: bool) -> list[onnx.NodeProto]:
    """Operators that put the stored values into zeros."""
    nodes, total, elements = [], f"{name}.blocks", f"{name}.values"
    for part in ("groups", "offsets") if groups else ("offsets",):
        nodes.append(_node(name, "Cast", [f"{name}.{part}"], f"{name}.{part}.int32", to=TensorProto.INT32))
        nodes.append(_node(name, "Add", [total, f"{name}.{part}.int32"], f"{name}.to_{part}"))
        total = f"{name}.to_{part}"
    nodes.append(_node(name, "Reshape", [total, f"{name}.flat"], f"{name}.positions"))
    if values != own:
        elements = f"{name}.values.cast"
        nodes.append(_node(name, "Cast", [f"{name}.values"], elements, to=TYPES[own]))
    zero = _proto("", np.zeros(1, unsigned(own)), own)
    nodes.append(_node(name, "ConstantOfShape", [f"{name}.size"], f"{name}.zeros", value=zero))
    scatter = [f"{name}.zeros", f"{name}.positions", elements]
    nodes.append(_node(name, "ScatterElements", scatter, f"{name}.scattered", axis=0))
    nodes.append(_node(name, "Reshape", [f"{name}.scattered", f"{name}.shape"], name))
    return nodes


def _sparse_tensor(name: str, tensor: StoredTensor, values: str) -> Encoded | None:
    bits = tensor.bits()
    positions = np.flatnonzero(bits << 1)
    if not len(positions) or len(positions) * EXPANSION < bits.nbytes:
        return None
    stored = _proto(f"{name}.values", cast(of_bits(bits[positions], tensor.dtype), values, name).bits(), values)
    # As repeated numbers positions take two to five bytes each; as raw data they would take eight.
    indices = helper.make_tensor(f"{name}.indices", TensorProto.INT64, [len(positions)], positions)
    sparse = helper.make_sparse_tensor(stored, indices, list(tensor.shape))
    output = name if values == tensor.dtype else f"{name}.sparse"
    nodes = [_node(name, "Constant", [], output, sparse_value=sparse)]
    if values != tensor.dtype:
        nodes.append(_node(name, "Cast", [output], name, to=TYPES[tensor.dtype]))
    return Encoded({}, nodes)


ENCODERS: dict[str, Callable[[str, StoredTensor, str], Encoded | None]] = {
    "dense": _dense,
    "packed": _packed,
    "sparse-tensor": _sparse_tensor,
}


def _replaced(model: OnnxModel, encoded: dict[str, Encoded]) -> OnnxModel:
    kept = {name: tensor for name, tensor in model.tensors.items() if name not in encoded}
    added = {name: tensor for made in encoded.values() for name, tensor in made.tensors.items()}
    result = OnnxModel(model.copy().proto, {**kept, **added})
    graph = result.proto.graph
    replace_all(graph.node, [*(node for made in encoded.values() for node in made.nodes), *graph.node])
    # Before IR version 4 weights were inputs too, which callers may override; what is computed cannot be.
    replace_all(graph.input, [value for value in graph.input if value.name not in encoded])
    return result


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


def _proto(name: str, bits: np.ndarray, dtype: str) -> TensorProto:
    return TensorProto(name=name, data_type=TYPES[dtype], dims=[len(bits)], raw_data=bits.tobytes())


def _node(weight: str, operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    name = node_prefix(weight) + output.removeprefix(weight).strip(".")
    return helper.make_node(operator, inputs, [output], name=name, **attributes)
