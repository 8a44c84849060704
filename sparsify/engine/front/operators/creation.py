"""Constants, shapes as values, and operators that do nothing at inference."""

from __future__ import annotations

import math

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Node
from sparsify.engine.front.operators.layout import expand_to
from sparsify.engine.front.registry import importer
from sparsify.engine.limits import LIMITS

NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@importer("Constant")
def constant(b: Builder, node: Node) -> None:
    for name, value in node.attributes.items():
        if name in ("value", "sparse_value") and isinstance(value, np.ndarray):
            b.define(node.output(0), value)
            return
        if name in NUMBERS:
            b.define(node.output(0), np.array(value, NUMBERS[name]))
            return
    raise Unsupported("a constant of strings")


@importer("Identity")
def identity(b: Builder, node: Node) -> None:
    b.alias(node.output(0), node.input(0))


@importer("Dropout")
def dropout(b: Builder, node: Node) -> None:
    if node.input(2) and b.need_constant(node.input(2)).any() and _ratio(b, node) > 0:
        raise Unsupported("a dropout that drops")
    b.alias(node.output(0), node.input(0))
    if node.output(1):  # the mask, which old exporters ask for and never read
        kept = b.define(b.fresh(node.output(1)), np.array(True))
        expand_to(b, kept, b.shape(node.input(0)), node.output(1))


def _ratio(b: Builder, node: Node) -> float:
    return float(b.need_constant(node.input(1)).item()) if node.input(1) else 0.5


@importer("Shape")
def shape(b: Builder, node: Node) -> None:
    sizes = b.shape(node.input(0))
    b.define(node.output(0), np.array(sizes[node.get("start", 0) : node.get("end")], np.int64))


@importer("Size")
def size(b: Builder, node: Node) -> None:
    b.define(node.output(0), np.array(math.prod(b.shape(node.input(0))), np.int64))


@importer("ConstantOfShape")
def constant_of_shape(b: Builder, node: Node) -> None:
    fill = node.get("value", np.zeros(1, np.float32))
    source = b.define(b.fresh(node.output(0)), np.asarray(fill).reshape(()))
    wanted = tuple(int(i) for i in b.need_constant(node.input(0)).reshape(-1))
    if min(wanted, default=0) < 0:
        raise ValueError(f"a shape cannot be {wanted}")
    expand_to(b, source, wanted, node.output(0))


@importer("Range")
def range_(b: Builder, node: Node) -> None:
    start, limit, delta = (b.need_constant(name) for name in node.inputs)
    if delta.item() == 0:
        raise ValueError("a range of step 0")
    length = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    if length * 8 > LIMITS.value_bytes:
        raise ValueError(f"a range of {length} numbers")
    b.budget.spend(length * 8)
    numbers = start.item() + np.arange(length) * delta.item()
    b.define(node.output(0), numbers.astype(start.dtype))
