"""Dense layers with output channels in the lanes: outer products of some positions and some channels.

A tile of the output, a few positions by two vectors of channels, stays in registers while one loop goes over
all columns (input channels and taps): each position's number is broadcast from the padded plane and multiplied
with the column's weights, which lie packed side by side in the order of their use. So no lane is idle at the
end of a row, and a stride is only a larger step between numbers. At the end the tile is transposed in
registers and stored into the planes.

Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008), for the register
tile and the packed panel; Georganas et al., Anatomy of High-Performance Deep Learning Convolutions on SIMD
Architectures (2018), for taking the operand straight from the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.channel_tiles import STEPS, Tiles, cut, source
from sparsify.engine.ir import F32, I32, I64, POINTER, Body, Module
from sparsify.engine.layout import Planes
from sparsify.engine.memory import LINE
from sparsify.engine.panels import groups_of, in_panels
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import is_by_rows
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.target import Level
from sparsify.engine.transpose import square

_ACROSS = 2  # vectors of channels in a tile of the output: a panel
_SHAPES: dict[Level, tuple[tuple[int, int], ...]] = {
    "avx512": ((1, 14), (2, 7), (1, 8)),
    "avx2": ((1, 6), (1, 4)),
    "generic": ((1, 4),),
}  # rows and columns of positions in a tile: as many as leave registers for the operands
_NARROW: dict[Level, tuple[tuple[int, int], ...]] = {"avx512": ((1, 4),), "avx2": (), "generic": ()}  # of few in all
_SHARE = 0.95  # of the multiplications that the CPU could do
_TILE_COST = 60  # of a transposition, in vector multiplications for each vector of channels
_STREAM = 36e9  # bytes of weights a second and thread, each read once
_FEW = 8  # positions in a tile up to which the weights are what takes time
_SOON = 8 << 10  # bytes of weights
_FAR = 1 << 31  # bytes that an offset reaches


def propose(operation: Operation, context: Context) -> Proposal | None:
    """A Convolution or Linear on planes of one image after the other, zeros multiplied like any number."""
    if not isinstance(operation, Convolution | Linear) or operation.weight.size == 0:
        return None
    base, output = context.layouts[operation.input], context.layouts[operation.output]
    if base is None or output is None or max(base.lanes, output.lanes, base.bands, output.bands) > 1:
        return None
    if is_by_rows(operation, context.layouts):  # no zeros lie around such an image
        return None
    if isinstance(operation, Convolution) and operation.stride != (1, 1) and operation.stride[1] not in STEPS:
        return None
    input = source(operation, base, output, context.target.width)
    if max(input.size, output.size) * 4 >= _FAR:
        return None
    shapes = _SHAPES[context.target.level]
    if output.images * output.height * output.width <= _FEW:
        shapes += _NARROW[context.target.level]
    possible = [tiles for shape in shapes if (tiles := cut(operation, input, output, *shape)) is not None]
    if not possible:
        return None
    tiles = min(possible, key=lambda tiles: _work(operation, tiles, context.target.width))
    work = _work(operation, tiles, context.target.width) / (_SHARE * context.target.multiplications)
    weights = operation.weight.size * 4 / _STREAM
    seconds = max(work, weights) / context.threads
    return Proposal(seconds, lambda: _stage(operation, context, input, output, tiles, seconds))


def _work(operation: Convolution | Linear, tiles: Tiles, width: int) -> float:
    """Vector multiplications, the transpositions counted as some."""
    rows, columns, groups = len(operation.weight), operation.weight.size // len(operation.weight), groups_of(operation)
    vectors = -(-(rows // groups) // width) * groups
    return vectors * (columns * tiles.positions + len(tiles.table) * _TILE_COST)


def _stage(
    operation: Convolution | Linear, context: Context, input: Planes, output: Planes, tiles: Tiles, seconds: float
) -> Stage:
    width = context.target.width
    shifts, records, panels = in_panels(operation, input, _ACROSS * width, width)
    count, epilogue = len(tiles.table), operation.epilogue
    wanted = -(-context.threads * context.tuning.tiles_per_thread // len(records))
    # Threads share positions rather than channels where their images are larger than the weights: what a thread
    # reads then is mostly what it wrote itself.
    by_position = operation.weight.size < input.images * input.channels * input.height * input.width
    if by_position:
        wanted = max(wanted, context.threads)
    length = -(-count // min(count, wanted))  # of the tiles that make a piece of work
    groups = -(-count // length)
    down = operation.stride[0] if isinstance(operation, Convolution) else 1
    ahead = max(1, _ACROSS * width * 4 // count)
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    parameters = [
        len(records), groups, length, count, tiles.whole, len(shifts), output.channel * 4, down * input.pitch * 4,
        output.pitch * 4, 1 + has, has or 1, has, ahead, by_position,
    ]  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (np.array(parameters, np.int64), records, tiles.table, shifts, panels, limits)
    density = operation.nonzeros / operation.weight.size
    return Stage(
        kernel="channels",
        function=_name(tiles.rows, tiles.columns, tiles.step),
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=len(records) * groups,
        constants=constants,
        layouts={operation.input: input, **dict.fromkeys((operation.output, *residual), output)},
        flops=2.0 * operation.nonzeros * output.images * output.height * output.width,
        density=density,
        seconds=seconds,
        why=f"density {density:.0%}, tiles of {tiles.rows} x {tiles.columns} positions",
    )


def _name(rows: int, columns: int, step: int) -> str:
    return f"sparsify_channels_{rows}x{columns}_{step}"


def emit(module: Module) -> None:
    """void sparsify_channels_<rows>x<columns>_<step>(buffers, constants, tile): a panel, some tiles."""
    for rows, columns in _SHAPES[module.target.level] + _NARROW[module.target.level]:
        finish = _emit_finish(module, rows, columns)
        for step in STEPS:
            _emit(module, rows, columns, step, finish)


@dataclass(frozen=True)
class _Panel:
    """A panel's numbers in native code: addresses, and distances in bytes."""

    input: ir.Value
    output: ir.Value
    residual: ir.Value  # the output again where there is none
    has_residual: ir.Value
    weights: ir.Value
    shifts: ir.Value
    depth: ir.Value  # columns
    channels: ir.Value
    channel: ir.Value  # from one channel to the next, in the output
    down: ir.Value  # from one row to the next, in the input
    along: ir.Value  # and in the output
    ahead: ir.Value  # of the next panel, to be fetched with each column
    limits: ir.Value


def _emit(module: Module, rows: int, columns: int, step: int, finish: ir.Function) -> None:
    body = Body(module, _name(rows, columns, step))
    b = body.builder
    buffers, constants, number = body.arguments
    parameters, records, table, shifts, weights, limits = (body.pointer(constants, i) for i in range(6))
    *sizes, by_position = body.numbers(parameters, 14)
    panels, groups, length, count, whole, depth, channel, down, along, output, added, has, ahead = sizes
    by_position = b.icmp_signed("!=", by_position, body.const(0))
    inner = b.select(by_position, panels, groups)
    outer, inner = b.udiv(number, inner), b.urem(number, inner)
    chosen, group = b.select(by_position, inner, outer), b.select(by_position, outer, inner)
    record = body.at(records, b.mul(chosen, body.const(4)), I64)
    weights_at, input_at, first_channel, channels = body.numbers(record, 4)
    plane = b.mul(first_channel, channel)
    panel = _Panel(
        body.bytes(body.pointer(buffers, 0), input_at), body.bytes(body.pointer(buffers, output), plane),
        body.bytes(body.pointer(buffers, added), plane), has, body.bytes(weights, weights_at), shifts, depth,
        channels, channel, down, along, ahead, limits,
    )  # fmt: skip
    scratch = b.alloca(module.vector, _ACROSS * module.width)
    first = b.mul(group, length)
    last = body.smaller(b.add(first, length), count)
    middle = body.smaller(b.select(b.icmp_signed(">", whole, first), whole, first), last)
    spans = [(1, middle, last)] if rows == 1 else [(rows, first, middle), (1, middle, last)]
    with b.if_else(b.icmp_signed(">", channels, body.const(module.width))) as branches:
        for branch, across in zip(branches, (_ACROSS, 1), strict=True):
            with branch:
                for height, start, stop in spans:
                    points = [(row, column * step) for row in range(height) for column in range(columns)]
                    with body.loop(start, stop) as turn:
                        entry = body.at(table, b.mul(turn.index, body.const(4)), I32)
                        here, there, mask = (b.sext(body.load(entry, i, I32), I64) for i in range(3))
                        sums = _products(body, panel, here, turn.index, points, across)
                        for i, total in enumerate(sums):
                            place = i % across * module.width + i // across
                            b.store(total, body.at(scratch, place, module.vector))
                        for i in range(across):
                            _finish(body, panel, finish, scratch, there, mask, i)
    body.done()


def _products(
    body: Body, panel: _Panel, here: ir.Value, tile: ir.Value, points: list[tuple[int, int]], across: int
) -> list[ir.Value]:
    """The sums of a tile: for each point (row, floats along it) in turn, `across` vectors of channels.

    Meanwhile the next panel comes into the second-level cache; where there are few positions, what is next of this
    one into the first.
    """
    b, kind = body.builder, body.module.vector
    size = b.mul(b.add(panel.depth, body.const(1)), body.const(across * kind.count * 4))
    upcoming = body.bytes(panel.weights, b.add(size, b.mul(b.mul(tile, panel.depth), panel.ahead)))
    bias = [b.load(body.at(panel.weights, i, kind), typ=kind, align=4) for i in range(across)]
    input = body.bytes(panel.input, here)
    with body.loop(0, panel.depth, 1, bias * len(points)) as column:
        if len(points) > _FEW:
            body.prefetch(body.bytes(upcoming, b.mul(column.index, panel.ahead)), 2)
        begin = body.bytes(input, b.sext(body.load(panel.shifts, column.index, I32), I64))
        lines = [begin, body.bytes(begin, panel.down)]
        at = b.mul(b.add(column.index, body.const(1)), body.const(across))
        weights = [
            b.load(body.at(panel.weights, b.add(at, body.const(i)), kind), typ=kind, align=4) for i in range(across)
        ]
        if len(points) <= _FEW:
            for i in range(across):
                soon = b.add(at, body.const(i + _SOON // (4 * kind.count)))
                body.prefetch(body.at(panel.weights, soon, kind), 1)
        column.following = []
        for number, (row, place) in enumerate(points):
            x = body.splat(body.load(lines[row], place, F32))
            for i, weight in enumerate(weights):
                column.following.append(body.fma(x, weight, column.state[number * across + i]))
    return column.state


_FINISH = ir.FunctionType(ir.VoidType(), [POINTER] * 3 + [I64] * 5 + [POINTER])


def _finish(
    body: Body, panel: _Panel, finish: ir.Function, scratch: ir.Value, there: ir.Value, mask: ir.Value, part: int
) -> None:
    """Call `finish` for one of a tile's vectors of channels."""
    b, done = body.builder, body.module.width * part
    offset = b.add(there, b.mul(panel.channel, body.const(done)))
    b.call(finish, [
        body.at(scratch, done, body.module.vector), body.bytes(panel.output, offset),
        body.bytes(panel.residual, offset), panel.has_residual, mask, b.sub(panel.channels, body.const(done)),
        panel.channel, panel.along, panel.limits,
    ])  # fmt: skip


def _emit_finish(module: Module, rows: int, columns: int) -> ir.Function:
    """Transpose the sums of a vector of channels, add the residual, clamp and store.

    void finish(sums, output, residual, has residual, mask, channels, channel, along, limits)
    """
    body = Body(module, f"sparsify_channels_finish_{rows}x{columns}", _FINISH)
    body.function.linkage = "internal"
    body.function.attributes.add("noinline")
    b, width, kind = body.builder, module.width, module.vector
    sums, output, residual, has, mask, channels, channel, along, limits = body.arguments
    low, high = (body.splat(body.load(limits, i, F32)) for i in (0, 1))
    has = body.splat(b.icmp_signed("!=", has, body.const(0)))
    vectors = [b.load(body.at(sums, i, kind), typ=kind) for i in range(width)]
    for number, vector in enumerate(square(body, vectors)):
        is_there = b.icmp_signed("<", body.const(number), channels)
        for row in range(rows):
            # A second row's lanes are further on in the vector, so its place begins as much earlier.
            part = body.const(((1 << columns) - 1) << row * columns if rows > 1 else -1)
            chosen = body.lanes(b.select(is_there, b.and_(mask, part), body.const(0)))
            place = b.mul(channel, body.const(number))
            if row:
                place = b.add(place, b.sub(along, body.const(4 * columns)))
            else:  # the lines of a tile soon to come: so many streams are too many for the hardware to foresee
                body.prefetch(body.bytes(output, b.add(place, body.const(2 * LINE))), 1, write=True)
                body.prefetch(body.bytes(residual, b.add(place, body.const(2 * LINE))), 1)
            old = body.masked_load(body.bytes(residual, place), b.and_(chosen, has))
            total = body.minimum(high, body.maximum(low, b.fadd(vector, old)))
            body.masked_store(total, body.bytes(output, place), chosen)
    body.done()
    return body.function
