"""Weights as data, a value and a 16-bit offset for each non-zero: for layers of few positions.

Straight-line code of such a layer is fetched once and hardly used; here six bytes a non-zero stream by
instead of fifteen. The columns are cut into blocks whose input stays in the first-level cache while all rows
of a tile go over it; the rows' sums wait in the output.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I16, I32, I64, Body, Module
from sparsify.engine.layout import LINE, Planes, up
from sparsify.engine.memory import Written, joined
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries, shifts
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.target import Level
from sparsify.engine.tiles import Layer, prepare

_MOST = 8  # vectors of positions in registers
_SUMS: dict[Level, int] = {"avx512": 28, "avx2": 13, "generic": 13}  # registers for them: operands need the rest
_CACHE = {True: 80 << 10, False: 40 << 10}  # bytes of input in a block of columns, by whether it has one tap
_NEAREST = 44 << 10  # bytes of input in a block of columns where images lie side by side
_PIECE = 18  # non-zeros of a row in such a block that are worth its beginning and end
_AHEAD = 4 << 10  # bytes of weights
_SPAN = 1 << 16  # floats that an offset reaches
_LOADS, _STREAM = 6.0e9, 11e9  # loads, and bytes of weights, a second and thread


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes, but of few positions if it is to win."""
    if not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None or layer.input.channel >= _SPAN // 4:
        return None
    shape = _shape(operation, layer, context)
    # From the second cache, or across lines; positions of images side by side are as many streams.
    near = layer.output.lanes == 1 or layer.output.vectors
    loads = layer.nonzeros * (2 + shape.vectors * (2 if near else 4))
    sums = shape.blocks * len(operation.weight) * (2 * shape.vectors + 6)
    stream = layer.nonzeros * 6 / _STREAM
    seconds = max((loads + sums) * shape.groups / _LOADS, stream) / context.threads
    return Proposal(seconds, lambda: _stage(operation, context, layer, shape, seconds))


def _is_pointwise(operation: Convolution | Linear) -> bool:
    """Whether there is one tap, so that every load is aligned."""
    return isinstance(operation, Linear) or operation.weight.shape[2:] == (1, 1)


@dataclass(frozen=True)
class _Shape:
    """How a layer is cut: groups of vectors of positions, blocks of columns, tiles of rows."""

    vectors: int  # of positions in a group
    groups: int
    span: int  # floats of input in a block of columns
    blocks: int
    rows: int  # in a tile
    together: int  # rows in work at a time


def _shape(operation: Convolution | Linear, layer: Layer, context: Context) -> _Shape:
    total = len(layer.where.table)
    groups = -(-total // _MOST)
    vectors = -(-total // groups)
    channel = layer.input.channel
    met = (
        channel
        if groups == 1
        else min(channel, (1 if _is_pointwise(operation) else 3) * vectors * context.target.width)
    )  # floats that a group reads
    channels = _CACHE[_is_pointwise(operation)] // (met * 4)
    if layer.output.vectors and layer.output.lanes > 1:
        fitting = _NEAREST // (vectors * context.target.width * 4)
        channels = max(fitting, int(_PIECE / max(layer.density, 1e-3)))
    channels = max(1, min(channels, _SPAN // channel - 2))
    blocks = -(-layer.input.channels // channels)
    tiles = max(1, -(-context.threads * context.tuning.tiles_per_thread // groups))
    together = _together(vectors, context.target.level)
    rows = up(-(-len(operation.weight) // tiles), together)
    return _Shape(vectors, groups, channels * channel, blocks, rows, together)


def _together(vectors: int, level: Level) -> int:
    """Rows in work at a time: what begins and ends them is paid once, and their sums do not wait for each other."""
    return next(rows for rows in (4, 2, 1) if rows * vectors <= _SUMS[level] or rows == 1)


@dataclass(frozen=True, eq=False)
class _Packed:
    """Rows of a tile and block in work together are a team; teams come one after the other."""

    base: np.ndarray  # int64 [blocks]: the shift that a block's offsets count from
    first: np.ndarray  # int64 [tiles * blocks * teams + 1]: where the entries of each team begin
    order: np.ndarray  # int32 [tiles * blocks * teams * together]: which rows of the layer those are
    offset: Written  # uint16 [entries]: one of each row, again and again
    value: Written  # float32 [entries]


def _pack(operation: Convolution | Linear, input: Planes, shape: _Shape) -> _Packed:
    """Tile by tile, because what that takes beside the result is several times as large."""
    lowest, highest = _reach(operation, input)
    blocks = (highest - lowest) // shape.span + 1
    strips = []
    for start in range(0, len(operation.weight), shape.rows):
        found = entries(operation, input, start, min(start + shape.rows, len(operation.weight)))
        lengths, order, offset, value = _strip(found.row, found.shift - lowest, found.value, found.rows, blocks, shape)
        strips.append((lengths, order + start, offset, value))
    every_length, orders, offsets, values = zip(*strips, strict=True)
    first = np.concatenate([[0], np.cumsum(np.concatenate(every_length))]).astype(np.int64)
    base = lowest + np.arange(blocks) * shape.span
    return _Packed(base, first, np.concatenate(orders).astype(np.int32), joined(offsets), joined(values))


def _reach(operation: Convolution | Linear, input: Planes) -> tuple[int, int]:
    """The lowest and the highest shift that any weight can have."""
    if isinstance(operation, Linear):
        return 0, (input.channels - 1) * input.channel
    found = shifts(operation, input)
    return int(found.min()), int(found.max()) + (operation.groups - 1) * operation.weight.shape[1] * input.channel


def _strip(
    row: np.ndarray, shift: np.ndarray, number: np.ndarray, rows: int, blocks: int, shape: _Shape
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A tile of `rows` rows: entries of each team [blocks * teams], rows, and all entries' offsets and values."""
    together, teams = shape.together, shape.rows // shape.together
    block = shift // shape.span
    run = row * blocks + block
    counts = np.bincount(run, minlength=rows * blocks).reshape(rows, blocks).T
    # Rows come by their count, so that those of a team end together and the end of the loop is foreseen.
    order = np.argsort(-counts, axis=1, kind="stable")
    # What a last team lacks is its first row again, before it and without entries: what counts is stored last.
    lacking, whole = -rows % together, rows // together * together
    order = np.concatenate([order[:, :whole], order[:, whole : whole + 1].repeat(lacking, 1), order[:, whole:]], axis=1)
    slot = np.empty((blocks, rows), np.int64)  # of each row
    np.put_along_axis(slot, order, np.arange(order.shape[1])[None, :].repeat(blocks, 0), axis=1)
    order = np.pad(order, ((0, 0), (0, shape.rows - order.shape[1])))
    steps = np.zeros((blocks, shape.rows), np.int64)
    np.put_along_axis(steps, slot, counts, axis=1)
    lengths = steps.reshape(blocks, teams, together).max(axis=2).ravel() * together
    first = np.cumsum(lengths) - lengths
    sorted_by_run = np.argsort(run, kind="stable")  # in one pass: they are in order but for taps at a block's edge
    each = counts.T.ravel()
    within = np.arange(len(run)) - (np.cumsum(each) - each).repeat(each)
    mine = slot[block, row][sorted_by_run]
    place = first[block[sorted_by_run] * teams + mine // together] + within * together + mine % together
    offset, value = np.zeros(lengths.sum(), np.uint16), np.zeros(lengths.sum(), np.float32)
    offset[place] = (shift - block * shape.span)[sorted_by_run]
    value[place] = number[sorted_by_run]
    return lengths, order.ravel(), offset, value


def _stage(operation: Convolution | Linear, context: Context, layer: Layer, shape: _Shape, seconds: float) -> Stage:
    packed = _pack(operation, layer.input, shape)
    rows, epilogue = len(operation.weight), operation.epilogue
    tiles, blocks = -(-rows // shape.rows), len(packed.base)
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    lines = shape.span // LINE if layer.input.lanes == 1 else 0
    fetch = -(-lines * shape.together // shape.rows)  # of the next block's input, at each team
    parameters = [rows, shape.rows // shape.together, shape.groups, blocks, layer.output.channel, 1 + has, has, fetch]
    table = np.repeat(layer.where.table[-1:], shape.vectors * shape.groups, axis=0)  # filled up with idle vectors
    table[:, 2] = 0
    table[: len(layer.where.table)] = layer.where.table
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (
        np.array(parameters, np.int64), table, packed.base, packed.first, packed.offset, packed.value,
        operation.bias, limits, packed.order,
    )  # fmt: skip
    return Stage(
        kernel="compact",
        function=f"sparsify_compact_{shape.vectors}",
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=tiles * shape.groups,
        constants=constants,
        layouts={operation.input: layer.input, **dict.fromkeys((operation.output, *residual), layer.output)},
        flops=2.0 * layer.nonzeros * layer.where.useful,
        density=layer.density,
        seconds=seconds,
        why=f"density {layer.density:.0%}, few positions, {blocks} column blocks",
    )


def emit(module: Module) -> None:
    """void sparsify_compact_<vectors>(buffers, constants, tile): some rows, one group of positions."""
    for vectors in range(1, _MOST + 1):
        _emit(module, vectors, _together(vectors, module.target.level))


def _emit(module: Module, vectors: int, together: int) -> None:
    body = Body(module, f"sparsify_compact_{vectors}")
    b = body.builder
    buffers, constants, tile = body.arguments
    pointers = [body.pointer(constants, i) for i in range(9)]
    parameters, table, bases, firsts, offsets, values, bias, limits, order = pointers
    rows, tall, groups, blocks, channel, output, has, fetch = body.numbers(parameters, 8)
    group, strip = b.urem(tile, groups), b.udiv(tile, groups)
    teams = b.udiv(b.add(rows, body.const(together - 1)), body.const(together))
    rest = b.sub(teams, b.mul(strip, tall))
    count = body.smaller(rest, tall)
    table = body.at(table, b.mul(group, body.const(4 * vectors)), I32)
    places = [[b.zext(body.load(table, 4 * i + j, I32), I64) for j in range(3)] for i in range(vectors)]
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    last = b.sub(blocks, body.const(1))

    def block_of(block: ir.Value, is_first: bool, is_last: bool, is_whole: bool = False) -> None:
        """All teams over one block of columns; is_whole: whether all lanes are stored, which is faster."""
        input = body.at(body.pointer(buffers, 0), body.load(bases, block, I64), F32)
        inputs = [body.bytes(input, place[0]) for place in places]
        following = body.load(bases, body.smaller(b.add(block, body.const(1)), last), I64)
        upcoming = body.at(body.bytes(body.pointer(buffers, 0), places[0][0]), following, F32)
        piece = b.mul(b.add(b.mul(strip, blocks), block), tall)
        edges = body.at(firsts, piece, I64)
        results = [body.bytes(body.pointer(buffers, output), place[1]) for place in places]
        with body.loop(0, count, 1, [body.load(edges, 0, I64)]) as team:
            done = b.mul(team.index, fetch)
            with body.loop(done, b.add(done, fetch)) as line:
                body.prefetch(body.at(upcoming, b.mul(line.index, body.const(LINE)), F32), 2)
            # No core fetches beyond a page by itself; of few vectors the weights pass too fast for this to help.
            for array, size in ((values, 4), (offsets, 2)) if vectors > 2 else ():
                entry = body.bytes(array, b.mul(team.state[0], body.const(size)))
                for ahead in range(-(-_PIECE * together * size // 64) + 1):
                    body.prefetch(body.bytes(entry, body.const(_AHEAD + 64 * ahead)), 1)
            lines = body.at(order, b.mul(b.add(piece, team.index), body.const(together)), I32)
            numbers = [b.zext(body.load(lines, i, I32), I64) for i in range(together)]
            planes = [b.mul(number, channel) for number in numbers]
            begin = []
            for number, plane in zip(numbers, planes, strict=True):
                if is_first:
                    begin += [body.splat(body.load(bias, number, F32))] * vectors
                else:
                    begin += [body.vector(body.at(result, plane, F32), 0) for result in results]
            end = body.load(edges, b.add(team.index, body.const(1)), I64)
            sums = _products(body, (team.state[0], end), (offsets, values), inputs, begin)
            team.following = [end]
            for i, plane in enumerate(planes):
                totals = sums[i * vectors : (i + 1) * vectors]
                added = body.at(body.pointer(buffers, has), plane, F32)
                for total, result, place in zip(totals, results, places, strict=True):
                    there, mask = body.at(result, plane, F32), place[2]
                    if is_last:
                        residual = body.bytes(added, place[1])
                        body.finish_vector(total, body.const(0), mask, there, residual, has, bounds)
                    elif is_whole:
                        body.store(total, there, 0)
                    else:
                        body.masked_store(total, there, body.lanes(mask))

    alone = b.icmp_signed("==", blocks, body.const(1))
    lanes = functools.reduce(b.and_, [place[2] for place in places])
    with b.if_else(alone) as (one, several):
        with one:
            block_of(body.const(0), True, True)
        with several:
            block_of(body.const(0), True, False)
            with b.if_else(b.icmp_signed("==", lanes, body.const((1 << module.width) - 1))) as choices:
                for is_whole, choice in zip((True, False), choices, strict=True):
                    with choice, body.loop(1, last) as block:
                        block_of(block.index, False, False, is_whole)
            block_of(last, False, True)
    body.done()


def _products(
    body: Body, edges: tuple[ir.Value, ir.Value], arrays: tuple[ir.Value, ir.Value], inputs: list[ir.Value],
    begin: list[ir.Value],
) -> list[ir.Value]:  # fmt: skip
    """The sums after a team's non-zeros of a block, one of each row at a time."""
    b, kind = body.builder, body.module.vector
    together = len(begin) // len(inputs)
    several = ir.IntType(16 * together)
    with body.loop(*edges, together, begin) as entry:
        offsets = body.load(body.at(arrays[0], entry.index, I16), 0, several, align=2)
        entry.following = []
        for i in range(together):
            offset = b.zext(b.trunc(b.lshr(offsets, ir.Constant(several, 16 * i)), I16), I64)
            weight = body.splat(body.load(body.at(arrays[1], entry.index, F32), i, F32))
            for pointer in inputs:
                x = b.load(body.at(pointer, offset, F32), typ=kind, align=4)
                entry.following.append(body.fma(weight, x, entry.state[len(entry.following)]))
    return entry.state
