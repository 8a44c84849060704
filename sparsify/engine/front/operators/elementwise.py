"""Operators that apply a function to each element."""

from __future__ import annotations

from functools import reduce

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.registry import importer
from sparsify.engine.front.tensors import dtype_of
from sparsify.engine.functions import FUNCTIONS
from sparsify.engine.program import Elementwise, Value

# Functions whose operands ONNX gives as attributes or in another number have an importer of their own below.
SPECIAL = (
    "cast",
    "clip",
    "elu",
    "gelu",
    "gelu_tanh",
    "hard_sigmoid",
    "isinf",
    "isnan",
    "leaky_relu",
    "max",
    "min",
    "mod",
    "pow",
)
PLAIN = {
    "".join(part.capitalize() for part in name.split("_")): name for name in FUNCTIONS if name not in SPECIAL
}  # fmt: skip


@importer(*PLAIN)
def plain(b: Builder, node: Node) -> None:
    operands = [name for name in node.inputs if name]
    b.elementwise(PLAIN[node.operator], *operands, output=node.output(0))


@importer("Pow")
def pow_(b: Builder, node: Node) -> None:
    """Powers that exporters write for squares, roots and cubes as what they are, which kernels know."""
    source, output = node.input(0), node.output(0)
    exponent = b.constant(node.input(1))
    is_single = exponent is not None and exponent.size == 1 and b.dtype(source) == "float32"
    if exponent is None or not is_single or exponent.ndim > len(b.shape(source)):
        b.elementwise("pow", source, node.input(1), output=output)
        return
    match float(exponent.reshape(-1)[0]):
        case 2.0:
            b.elementwise("mul", source, source, output=output)
        case 3.0:
            b.elementwise("mul", b.elementwise("mul", source, source), source, output=output)
        case 0.5:
            b.elementwise("sqrt", source, output=output)
        case -0.5:
            b.elementwise("reciprocal", b.elementwise("sqrt", source), output=output)
        case -1.0:
            b.elementwise("reciprocal", source, output=output)
        case _:
            b.elementwise("pow", source, node.input(1), output=output)


@importer("Trilu")
def trilu(b: Builder, node: Node) -> None:
    source, shape = node.input(0), b.shape(node.input(0))
    if len(shape) < 2:
        raise ValueError(f"there is no triangle in {shape}")
    k = int(b.need_constant(node.input(1)).reshape(-1)[0]) if node.input(1) else 0
    triangle = np.triu if node.get("upper", 1) else np.tril
    b.budget.spend(shape[-2] * shape[-1])
    kept = triangle(np.ones(shape[-2:], bool), k)
    b.elementwise("where", kept, source, np.zeros((), b.dtype(source)), output=node.output(0))


@importer("IsNaN")
def isnan(b: Builder, node: Node) -> None:
    b.elementwise("isnan", node.input(0), output=node.output(0))


@importer("IsInf")
def isinf(b: Builder, node: Node) -> None:
    if not (node.get("detect_positive", 1) and node.get("detect_negative", 1)):
        raise Unsupported("infinity of one sign")
    b.elementwise("isinf", node.input(0), output=node.output(0))


@importer("Max", "Min", "Sum", "Mean")
def variadic(b: Builder, node: Node) -> None:
    function = {"Max": "max", "Min": "min"}.get(node.operator, "add")
    result = reduce(lambda x, y: b.elementwise(function, x, y), node.inputs)
    if node.operator == "Mean":
        result = b.elementwise("div", result, np.array(len(node.inputs), np.float32))
    b.alias(node.output(0), result)


@importer("Mod")
def mod(b: Builder, node: Node) -> None:
    if node.get("fmod", 0):
        raise Unsupported("the remainder of C")
    b.elementwise("mod", *node.inputs, output=node.output(0))


def cast_to(b: Builder, source: str, dtype: str, output: str) -> None:
    """Convert to a dtype; nothing where it is that already."""
    if any(np.dtype(name).isbuiltin != 1 or name == "object" for name in (dtype, b.dtype(source))):
        raise Unsupported(f"numbers of the dtype {dtype}")
    if b.dtype(source) == dtype:
        b.alias(output, source)
    else:
        operation = Elementwise("cast", (b.operand(source),), output)
        b.emit(operation, Value(output, b.shape(source), dtype))


@importer("Cast")
def cast(b: Builder, node: Node) -> None:
    cast_to(b, node.input(0), dtype_of(node.get("to")), node.output(0))


@importer("CastLike")
def cast_like(b: Builder, node: Node) -> None:
    cast_to(b, node.input(0), b.dtype(node.input(1)), node.output(0))


@importer("Clip")
def clip(b: Builder, node: Node) -> None:
    source = node.input(0)
    dtype = np.dtype(b.dtype(source))
    lowest, highest = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low = np.array(node.get("min", lowest), dtype)
    high = np.array(node.get("max", highest), dtype)
    b.elementwise("clip", source, node.input(1) or low, node.input(2) or high, output=node.output(0))


@importer("LeakyRelu")
def leaky_relu(b: Builder, node: Node) -> None:
    slope = np.array(node.get("alpha", 0.01), np.float32)
    b.elementwise("leaky_relu", node.input(0), slope, output=node.output(0))


@importer("PRelu")
def prelu(b: Builder, node: Node) -> None:
    if b.dtype(node.input(0)) != "float32":
        raise Unsupported("PRelu of integers")
    b.elementwise("leaky_relu", *node.inputs, output=node.output(0))


@importer("Elu")
def elu(b: Builder, node: Node) -> None:
    alpha = np.array(node.get("alpha", 1.0), np.float32)
    b.elementwise("elu", node.input(0), alpha, output=node.output(0))


@importer("HardSigmoid")
def hard_sigmoid(b: Builder, node: Node) -> None:
    alpha, beta = np.array(node.get("alpha", 0.2), np.float32), np.array(node.get("beta", 0.5), np.float32)
    b.elementwise("hard_sigmoid", node.input(0), alpha, beta, output=node.output(0))


@importer("HardSwish")
def hard_swish(b: Builder, node: Node) -> None:
    gate = b.elementwise("hard_sigmoid", node.input(0), np.array(1 / 6, np.float32), np.array(0.5, np.float32))
    b.elementwise("mul", node.input(0), gate, output=node.output(0))


@importer("Gelu")
def gelu(b: Builder, node: Node) -> None:
    function = "gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu"
    b.elementwise(function, node.input(0), output=node.output(0))


@importer("DequantizeLinear")
def dequantize(b: Builder, node: Node) -> None:
    """(x - zero) * scale, per tensor, along one axis, or per block of an axis."""
    wide = b.fresh(node.input(0))
    cast_to(b, node.input(0), "float32", wide)
    wide = b.resolve(wide)
    if node.input(2):
        wide = b.elementwise("sub", wide, _scales(b, node, b.need_constant(node.input(2)).astype(np.float32)))
    b.elementwise("mul", wide, _scales(b, node, b.need_constant(node.input(1))), output=node.output(0))


def _scales(b: Builder, node: Node, scale: Array) -> Array:
    """Scales or zero points of a DequantizeLinear, so that they broadcast to its input."""
    shape = b.shape(node.input(0))
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    if block:
        return np.repeat(scale, block, axis)[tuple(slice(size) for size in shape)]
    along = [1] * len(shape)
    if scale.size > 1:
        along[axis] = scale.size
    return scale.reshape(along if scale.ndim else ())
