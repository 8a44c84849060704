"""Reductions over axes, and softmax, which is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparsify.engine.front.builder import Builder
from sparsify.engine.front.graph import Node
from sparsify.engine.front.registry import importer
from sparsify.engine.front.shapes import normal_axis
from sparsify.engine.program import Reduce, Softmax

TINY = float(np.finfo(np.float32).tiny)  # added to a norm it changes none but 0, so that 0 / 0 becomes 0
SOFTMAX_OF_ONE_AXIS = 13  # the opset in which softmax stopped to flatten


def _axes(b: Builder, node: Node) -> tuple[int, ...] | None:
    """Axes to reduce, counted from the front; None where there is nothing to do."""
    rank = len(b.shape(node.input(0)))
    axes = b.ints(node, "axes", 1)
    if not axes:
        return None if node.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({normal_axis(axis, rank) for axis in axes}))


def _square(b: Builder, source: str) -> str:
    return b.elementwise("mul", source, source)


def _same(b: Builder, source: str) -> str:
    return source


Step = Callable[[Builder, str], str]


def _function(name: str) -> Step:
    return lambda b, source: b.elementwise(name, source)


# ONNX operator: what is done to each element, how they are joined, what is done to the result
REDUCTIONS: dict[str, tuple[Step, str, Step]] = {
    "ReduceMean": (_same, "mean", _same),
    "ReduceSum": (_same, "sum", _same),
    "ReduceProd": (_same, "prod", _same),
    "ReduceMax": (_same, "max", _same),
    "ReduceMin": (_same, "min", _same),
    "ReduceL1": (_function("abs"), "sum", _same),
    "ReduceL2": (_square, "sum", _function("sqrt")),
    "ReduceSumSquare": (_square, "sum", _same),
    "ReduceLogSum": (_same, "sum", _function("log")),
}


@importer(*REDUCTIONS)
def reduction(b: Builder, node: Node) -> None:
    before, kind, after = REDUCTIONS[node.operator]
    axes = _axes(b, node)
    source = before(b, node.input(0))
    if axes is not None:
        keep = bool(node.get("keepdims", 1))
        source = b.emit(Reduce(kind, source, b.fresh(node.output(0)), axes, keep))  # type: ignore[arg-type]
    b.alias(node.output(0), after(b, source))


@importer("LpNormalization")
def lp_normalization(b: Builder, node: Node) -> None:
    source = node.input(0)
    axis = normal_axis(node.get("axis", -1), len(b.shape(source)))
    before, _, after = REDUCTIONS["ReduceL1" if node.get("p", 2) == 1 else "ReduceL2"]
    total = b.emit(Reduce("sum", before(b, source), b.fresh("sum"), (axis,)))
    norm = b.elementwise("add", after(b, total), np.array(TINY, np.float32))
    b.elementwise("div", source, norm, output=node.output(0))


@importer("ReduceLogSumExp")
def log_sum_exp(b: Builder, node: Node) -> None:
    axes = _axes(b, node)
    if axes is None:
        axes = ()
    result = _log_sum_exp(b, node.input(0), axes)
    if not node.get("keepdims", 1):
        shape = b.shape(result)
        result = b.reshape(result, tuple(s for i, s in enumerate(shape) if i not in axes))
    b.alias(node.output(0), result)


def _log_sum_exp(b: Builder, source: str, axes: tuple[int, ...]) -> str:
    """log(sum(exp(x))) without overflow, axes kept."""
    highest = b.emit(Reduce("max", source, b.fresh("max"), axes))
    powers = b.elementwise("exp", b.elementwise("sub", source, highest))
    total = b.emit(Reduce("sum", powers, b.fresh("sum"), axes))
    return b.elementwise("add", b.elementwise("log", total), highest)


@importer("Softmax", "LogSoftmax")
def softmax(b: Builder, node: Node) -> None:
    source, shape = node.input(0), b.shape(node.input(0))
    flattens = node.opset < SOFTMAX_OF_ONE_AXIS
    axis = normal_axis(node.get("axis", 1 if flattens else -1), len(shape))
    if flattens and axis != len(shape) - 1:
        source = b.reshape(source, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        axis = 1
    if node.operator == "Softmax":
        result = b.emit(Softmax(source, b.fresh(node.output(0)), axis))
    else:
        result = b.elementwise("sub", source, _log_sum_exp(b, source, (axis,)))
    if b.shape(result) != shape:
        result = b.reshape(result, shape)
    b.alias(node.output(0), result)
