"""Softmax, layer normalisation and reductions across vectors: lanes are neighbours that share nothing.

So it is on planes of vectors, where an axis of channels is a stride and positions are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from sparsify.engine.folds import FOLDS, Fold, Folding, folding
from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.layout import Planes
from sparsify.engine.program import LayerNorm, Operation, Reduce, Softmax
from sparsify.engine.stage import Context, Stage
from sparsify.engine.vector_math import constant, exact_exp, intrinsic

TOGETHER = 4  # vectors
RATE = 1.5e9  # elements a second and thread


def propose(operation: Operation, context: Context) -> Stage | None:
    """Where the axis has others behind it in C order, or is the channels of planes of vectors."""
    if not isinstance(operation, Softmax | LayerNorm | Reduce):
        return None
    found = folding(operation, context.values)
    if found is None or found.outer * found.axis * found.inner == 0:
        return None
    layouts = [context.layouts[name] for name in (operation.input, operation.output)]
    width = context.target.width
    where: dict[str, Planes] = {}
    if found.inner > 1:
        step, is_reduced = found.axis * found.inner, isinstance(operation, Reduce)
        source = _Side(0, step, found.inner, width)
        target = _Side(0, found.inner if is_reduced else step, 0 if is_reduced else found.inner, width)
        count = found.inner
    elif not isinstance(operation, Reduce) and None not in layouts and found.axis > 1:
        planes = [layout for layout in layouts if layout is not None]
        rank = len(context.values[operation.input].shape)
        if operation.axis % rank != rank - 1 or not all(_is_matrix(layout, found.axis, width) for layout in planes):
            return None
        source, target = (_side(layout, width) for layout in planes)
        count = planes[0].images
        where = dict(zip((operation.input, operation.output), planes, strict=True))
    else:
        return None
    outer = 1 if where else found.outer
    return _stage(operation, context, found, [outer, found.axis, count, *source, *target], where)


class _Side(NamedTuple):
    """Where one of the two values lies, in floats."""

    start: int
    outer: int  # from one set of neighbours to the next
    axis: int  # along the axis
    vector: int  # from one vector of neighbours to the next


def _is_matrix(layout: Planes, channels: int, width: int) -> bool:
    return layout.vectors and layout.plane == 1 and layout.channels == channels and layout.lanes in (1, width)


def _side(layout: Planes, width: int) -> _Side:
    """Positions as neighbours: of one plane, or of blocks of as many images as a vector has lanes."""
    return _Side(layout.lead * layout.step, 0, layout.channel, width if layout.lanes == 1 else layout.step)


def _stage(
    operation: Softmax | LayerNorm | Reduce,
    context: Context,
    found: Folding,
    numbers: list[int],
    where: dict[str, Planes],
) -> Stage:
    size = found.outer * found.axis * found.inner
    blocks = -(-numbers[2] // (TOGETHER * context.target.width))
    return Stage(
        kernel="across",
        function=f"sparsify_across_{found.name}",
        reads=(operation.input,),
        writes=(operation.output,),
        tiles=numbers[0] * blocks,
        constants=(np.array([*numbers, blocks], np.int64), *found.constants),
        layouts=where,
        flops=float(size),
        seconds=size / RATE / context.threads,
        why=f"{numbers[2]} columns of {found.axis}",
    )


def emit(module: Module) -> None:
    """void sparsify_across_NAME(buffers, constants, tile): the axis for some vectors of neighbours."""
    functions: dict[str, Callable[..., None]] = {"softmax": _softmax, "layer_norm": _layer_norm}
    for name in (*functions, *FOLDS):
        body = Body(module, f"sparsify_across_{name}")
        b = body.builder
        buffers, constants, tile = body.arguments
        _, axis, count, *sides, blocks = body.numbers(body.pointer(constants, 0), 12)
        outer, first = b.udiv(tile, blocks), b.mul(b.urem(tile, blocks), body.const(TOGETHER))
        left = b.sub(count, b.mul(first, body.const(module.width)))
        ends = []
        for i in (0, 1):
            start, step, stride, vector = sides[4 * i : 4 * i + 4]
            offset = b.add(start, b.add(b.mul(outer, step), b.mul(first, vector)))
            ends.append(_Lines(body, body.at(body.pointer(buffers, i), offset, F32), stride, vector, left))
        if name in functions:
            functions[name](body, axis, *ends, constants)
        else:
            fold = FOLDS[name]
            totals = _folded(body, axis, ends[0], fold, lambda v, x: x)
            ends[1].store(body.const(0), [fold.finish(body, total, axis) for total in totals])
        body.done()


class _Lines:
    """Places along the axis, each of some vectors, of which those that are there are read and written."""

    def __init__(self, body: Body, start: ir.Value, stride: ir.Value, vector: ir.Value, count: ir.Value) -> None:
        self.body, self.start, self.stride, self.vector = body, start, stride, vector
        b, width = body.builder, body.module.width
        self.masks = [body.first_lanes(b.sub(count, body.const(v * width))) for v in range(TOGETHER)]

    def _places(self, index: ir.Value) -> list[ir.Value]:
        line = self.body.at(self.start, self.body.builder.mul(index, self.stride), F32)
        return [
            self.body.at(line, self.body.builder.mul(self.vector, self.body.const(v)), F32) for v in range(TOGETHER)
        ]

    def load(self, index: ir.Value) -> list[ir.Value]:
        places = self._places(index)
        return [self.body.masked_load(place, mask) for place, mask in zip(places, self.masks, strict=True)]

    def store(self, index: ir.Value, vectors: list[ir.Value]) -> None:
        for place, vector, mask in zip(self._places(index), vectors, self.masks, strict=True):
            self.body.masked_store(vector, place, mask)


Each = Callable[[int, ir.Value], ir.Value]  # (number of the vector, its elements) -> what is folded


def _folded(body: Body, axis: ir.Value, source: _Lines, fold: Fold, function: Each) -> list[ir.Value]:
    start = [constant(body.zeros(), fold.start)] * TOGETHER
    with body.loop(0, axis, 1, start) as turn:
        found = [function(v, x) for v, x in enumerate(source.load(turn.index))]
        turn.following = [fold.combine(body, total, x) for total, x in zip(turn.state, found, strict=True)]
    return turn.state


def _softmax(body: Body, axis: ir.Value, source: _Lines, target: _Lines, constants: ir.Value) -> None:
    b = body.builder
    highest = _folded(body, axis, source, FOLDS["max"], lambda v, x: x)
    with body.loop(0, axis, 1, [body.zeros()] * TOGETHER) as turn:
        powers = [exact_exp(body, b.fsub(x, most)) for x, most in zip(source.load(turn.index), highest, strict=True)]
        target.store(turn.index, powers)
        turn.following = [b.fadd(total, power) for total, power in zip(turn.state, powers, strict=True)]
    factors = [b.fdiv(constant(total, 1.0), total) for total in turn.state]
    with body.loop(0, axis) as turn:
        target.store(turn.index, [b.fmul(x, f) for x, f in zip(target.load(turn.index), factors, strict=True)])


def _layer_norm(body: Body, axis: ir.Value, source: _Lines, target: _Lines, constants: ir.Value) -> None:
    b = body.builder
    scale, bias = (body.pointer(constants, i) for i in (1, 2))
    epsilon = body.splat(body.load(body.pointer(constants, 3), 0, F32))
    count = body.splat(b.sitofp(axis, F32))
    means = [b.fdiv(total, count) for total in _folded(body, axis, source, FOLDS["sum"], lambda v, x: x)]

    def squared(v: int, x: ir.Value) -> ir.Value:
        centred = b.fsub(x, means[v])
        return b.fmul(centred, centred)

    squares = _folded(body, axis, source, FOLDS["sum"], squared)
    roots = [intrinsic(body, "sqrt", b.fadd(b.fdiv(square, count), epsilon)) for square in squares]
    factors = [b.fdiv(constant(root, 1.0), root) for root in roots]
    with body.loop(0, axis) as turn:
        by, plus = (body.splat(body.load(array, turn.index, F32)) for array in (scale, bias))
        normal = [b.fmul(b.fsub(x, means[v]), factors[v]) for v, x in enumerate(source.load(turn.index))]
        target.store(turn.index, [body.fma(x, by, plus) for x in normal])
