"""Dense layers with positions in the lanes: some output channels by some vectors of positions at a time.

Where images lie side by side every load is a whole aligned vector and no lane is idle, so the tile of sums stays
in registers as it will be stored. Zeros are multiplied like any number. Other layouts work too: this is the
kernel for dense layers that `channels` cannot take.

Where the second-level cache does not hold the input of a panel of positions, columns are cut into parts that it does
hold. Many row blocks go over one part before the next, and their sums wait in the output.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), for the blocking.
"""

from __future__ import annotations

import math
from operator import itemgetter

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.engine.layout import up
from sparsify.engine.memory import LINE
from sparsify.engine.panels import groups_of, in_panels
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import sweep
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.target import Level
from sparsify.engine.tiles import Layer, panel_length, prepare

_SHAPES: dict[Level, tuple[tuple[int, int], ...]] = {
    "avx512": ((8, 3), (14, 2), (28, 1)),
    "avx2": ((4, 3), (6, 2), (12, 1)),
    "generic": ((4, 3), (6, 2), (12, 1)),
}  # channels and vectors of positions in a tile: as many as leave registers for the operands
_LOADS = 8e9  # a second and thread


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes."""
    if not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None:
        return None
    shapes = _SHAPES[context.target.level]
    shape, seconds = min(((shape, _seconds(operation, layer, shape, context)) for shape in shapes), key=itemgetter(1))
    return Proposal(seconds, lambda: _stage(operation, context, layer, shape, seconds))


def _seconds(operation: Convolution | Linear, layer: Layer, shape: tuple[int, int], context: Context) -> float:
    """A column of a tile takes what its multiplications or its loads take, whichever is longer."""
    together, across = shape
    groups = groups_of(operation)
    blocks = groups * -(-len(operation.weight) // groups // together)
    columns, vectors = operation.weight.size // len(operation.weight), len(layer.where.table)
    column = max(together * across / context.target.multiplications, (together + across) / _LOADS)
    return blocks * columns * -(-vectors // across) * column / context.threads


def _stage(
    operation: Convolution | Linear, context: Context, layer: Layer, shape: tuple[int, int], seconds: float
) -> Stage:
    together, across = shape
    shifts, records, weights = in_panels(operation, layer.input, together, together)
    blocks, depth = len(records), len(shifts)
    vectors = up(len(layer.where.table), across)
    length = up(panel_length(layer, context, blocks), across)
    panels = -(-vectors // length)
    parts = -(-operation.weight.shape[1] * length * context.target.width * 4 // context.tuning.panel_bytes)
    strips = blocks  # of one block, or of some that go over a part of the columns one after the other
    if parts > 1:
        strips = min(blocks, -(-context.threads * context.tuning.tiles_per_thread // panels))
    table = np.repeat(layer.where.table[-1:], vectors, axis=0)  # filled up with idle vectors
    table[:, 2] = 0
    table[: len(layer.where.table)] = layer.where.table
    epilogue = operation.epilogue
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    ahead = together * 4 * across // length
    parameters = [
        blocks, strips, length, vectors, depth, -(-depth // parts), ahead, layer.output.channel, 1 + has, has or 1, has
    ]  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (np.array(parameters, np.int64), records, table, shifts, weights, limits)
    return Stage(
        kernel="dense",
        function=_name(shape),
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=strips * panels,
        constants=constants,
        layouts={operation.input: layer.input, **dict.fromkeys((operation.output, *residual), layer.output)},
        sweep=sweep(operation, layer.input, layer.output, length, strips),
        flops=2.0 * layer.nonzeros * layer.where.useful,
        density=layer.density,
        seconds=seconds,
        why=f"density {layer.density:.0%}, tiles of {together} channels x {across} vectors",
    )


def _name(shape: tuple[int, int]) -> str:
    return f"sparsify_dense_{shape[0]}x{shape[1]}"


def emit(module: Module) -> None:
    """void sparsify_dense_<channels>x<vectors>(buffers, constants, tile): some row blocks over a panel of positions."""
    for shape in _SHAPES[module.target.level]:
        _emit(module, shape)


def _emit(module: Module, shape: tuple[int, int]) -> None:
    together, across = shape
    body = Body(module, _name(shape))
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, records, table, shifts, weights, limits = (body.pointer(constants, i) for i in range(6))
    blocks, strips, length, count, depth, span, ahead, channel, output, added, has = body.numbers(parameters, 11)
    input, result, residual = (body.pointer(buffers, i) for i in (0, output, added))
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    unbound = [ir.Constant(module.vector, [bound] * module.width) for bound in (-math.inf, math.inf)]
    strip, first = b.urem(tile, strips), b.mul(b.udiv(tile, strips), length)
    last = body.smaller(b.add(first, length), count)
    top, bottom = (b.udiv(b.mul(b.add(strip, body.const(i)), blocks), strips) for i in (0, 1))

    def record(block: ir.Value) -> list[ir.Value]:
        """Where its numbers and its input begin (bytes), its first channel, channels."""
        return body.numbers(body.at(records, b.mul(block, body.const(4)), I64), 4)

    def weights_of(block: ir.Value, column: ir.Value) -> ir.Value:
        """Their address; the biases lie before those of column 0."""
        line = b.mul(b.add(column, body.const(1)), body.const(together * 4))
        return body.bytes(weights, b.add(record(block)[0], line))

    with body.loop(0, depth, span) as part:
        end = body.smaller(b.add(part.index, span), depth)
        is_first, is_last = b.icmp_signed("==", part.index, body.const(0)), b.icmp_signed("==", end, depth)
        # What other parts leave are sums, not yet clamped and without residual.
        limits_now = [b.select(is_last, bound, none) for bound, none in zip(bounds, unbound, strict=True)]
        has_now = b.select(is_last, has, body.const(0))
        with body.loop(top, bottom) as block:
            _, input_at, first_row, rows = record(block.index)
            # Next comes the next block, then the first one with the next part, or that of the next tile.
            following = b.add(block.index, body.const(1))
            stays = b.icmp_signed("<", following, bottom)
            after = b.select(is_last, body.smaller(bottom, b.sub(blocks, body.const(1))), top)
            begin = b.select(stays, part.index, b.select(is_last, body.const(0), end))
            upcoming = weights_of(b.select(stays, following, after), begin)
            bias, line = (weights_of(block.index, column) for column in (body.const(-1), part.index))
            lowest = b.sub(rows, body.const(1))
            planes = [b.mul(b.add(first_row, body.smaller(body.const(i), lowest)), channel) for i in range(together)]
            results = [body.at(result, plane, F32) for plane in planes]
            with body.loop(first, last, across, [upcoming]) as turn:
                entry = body.at(table, b.mul(turn.index, body.const(4)), I32)
                places = [[b.zext(body.load(entry, 4 * i + j, I32), I64) for j in range(3)] for i in range(across)]
                inputs = [body.bytes(input, b.add(input_at, place[0])) for place in places]
                sums = _begin(body, is_first, bias, results, places)
                starts = [line, body.at(shifts, part.index, I32), turn.state[0]]
                *sums, soon = _products(body, b.sub(end, part.index), starts, ahead, inputs, sums)
                turn.following = [soon]
                for i in range(together):
                    with b.if_then(b.icmp_signed("<", body.const(i), rows)):
                        old = body.at(residual, planes[i], F32)
                        for j, (_, offset, mask) in enumerate(places):
                            further = b.add(offset, body.const(2 * across * LINE))  # of a tile soon to come
                            body.prefetch(body.bytes(results[i], further), 1, write=True)
                            body.prefetch(body.bytes(old, further), 1)
                            total = sums[i * across + j]
                            body.finish_vector(total, offset, mask, results[i], old, has_now, limits_now)
    body.done()


def _begin(
    body: Body, is_first: ir.Value, bias: ir.Value, results: list[ir.Value], places: list[list[ir.Value]]
) -> list[ir.Value]:
    """What sums begin with: the rows' biases, or what the part before has left in the output."""
    b = body.builder
    with b.if_else(is_first) as (one, other):
        with one:
            fresh = [body.splat(body.load(bias, i, F32)) for i in range(len(results)) for _ in places]
            ends = [b.block]
        with other:
            left = [body.vector(body.bytes(result, place[1]), 0) for result in results for place in places]
            ends.append(b.block)
    sums = [b.phi(body.module.vector) for _ in fresh]
    for values, end in zip((fresh, left), ends, strict=True):
        for total, value in zip(sums, values, strict=True):
            total.add_incoming(value, end)
    return sums


def _products(
    body: Body, depth: ir.Value, starts: list[ir.Value], ahead: ir.Value, inputs: list[ir.Value], sums: list[ir.Value]
) -> list[ir.Value]:
    """The sums after `depth` columns, and how far fetching has come.

    starts: addresses of the first column's weights and shift, and of the weights that come next. Of these, `ahead`
    bytes are fetched with each column, so that all passes over a block share that and memory is never idle.
    """
    b, across = body.builder, len(inputs)
    weights, shifts, upcoming = starts
    with body.loop(0, depth, 1, [*sums, upcoming]) as column:
        *sums, soon = column.state
        body.prefetch(soon, 2)
        shift = b.sext(body.load(shifts, column.index, I32), I64)
        vectors = [body.vector(body.bytes(input, shift), 0) for input in inputs]
        line = body.at(weights, b.mul(column.index, body.const(len(sums) // across)), F32)
        column.following = []
        for number, total in enumerate(sums):
            weight = body.splat(body.load(line, number // across, F32))
            column.following.append(body.fma(weight, vectors[number % across], total))
        column.following.append(body.bytes(soon, ahead))
    return column.state
