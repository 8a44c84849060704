"""What softmax, layer normalisation and reductions share: one axis to go along, and how numbers are joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, Body
from sparsify.engine.program import LayerNorm, Reduce, Softmax, Value
from sparsify.engine.vector_functions import VECTOR


@dataclass(frozen=True)
class Fold:
    """How numbers are joined into one."""

    start: float
    combine: Callable[..., ir.Value]  # (body, x, y)
    finish: Callable[..., ir.Value]  # (body, total, count of numbers)


def _kept(body: Body, total: ir.Value, count: ir.Value) -> ir.Value:
    return total


def _divided(body: Body, total: ir.Value, count: ir.Value) -> ir.Value:
    number = body.builder.sitofp(count, F32)
    return body.builder.fdiv(total, body.splat(number) if isinstance(total.type, ir.VectorType) else number)


FOLDS = {
    "sum": Fold(0.0, VECTOR["add"], _kept),
    "mean": Fold(0.0, VECTOR["add"], _divided),
    "prod": Fold(1.0, VECTOR["mul"], _kept),
    "max": Fold(-math.inf, VECTOR["max"], _kept),
    "min": Fold(math.inf, VECTOR["min"], _kept),
}


@dataclass(frozen=True, eq=False)
class Folding:
    """An operation along one axis of [outer, axis, inner] in C order."""

    name: str
    outer: int
    axis: int
    inner: int
    constants: tuple[np.ndarray, ...]


def folding(operation: Softmax | LayerNorm | Reduce, values: Mapping[str, Value]) -> Folding | None:
    """The operation as one axis between two others; None where its axes are no neighbours, or not of float32."""
    value = values[operation.input]
    shape, rank = value.shape, len(value.shape)
    if value.dtype != "float32" or -1 in shape:
        return None
    if isinstance(operation, Softmax):
        axes = {operation.axis % rank}
    elif isinstance(operation, LayerNorm):
        axes = set(range(operation.axis % rank, rank))
    else:
        axes = {axis % rank for axis in operation.axes}
    long = [axis for axis in range(rank) if shape[axis] != 1]
    wanted = [number for number, axis in enumerate(long) if axis in axes]
    if wanted and wanted[-1] - wanted[0] + 1 != len(wanted):
        return None
    first, last = (wanted[0], wanted[-1] + 1) if wanted else (len(long), len(long))
    sizes = [shape[axis] for axis in long]
    outer, along, inner = (math.prod(part) for part in (sizes[:first], sizes[first:last], sizes[last:]))
    name = "softmax"
    constants: tuple[np.ndarray, ...] = ()
    if isinstance(operation, Reduce):
        name = operation.kind
    elif isinstance(operation, LayerNorm):
        name = "layer_norm"
        bias = np.zeros_like(operation.scale) if operation.bias is None else operation.bias
        epsilon = np.array([operation.epsilon])
        constants = tuple(np.asarray(a, np.float32) for a in (operation.scale, bias, epsilon))
    return Folding(name, outer, along, inner, constants)
