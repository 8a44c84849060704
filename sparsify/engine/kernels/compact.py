"""Weights as data, a value and a 16-bit offset for each non-zero: for layers of few positions.

Straight-line code of such a layer is fetched once and hardly used; here six bytes a non-zero stream by
instead of fifteen. The columns are cut into blocks whose input stays in the first-level cache while all rows
of a tile go over it; the rows' sums wait in the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I16, I32, I64, Body, Module
from sparsify.engine.layout import LINE
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import Entries, entries
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.tiles import Layer, prepare

_MOST = 8  # vectors of positions in registers
_CHAIN = {1: 4, 2: 4, 3: 2, 4: 2}  # sums for each of them, so that additions do not wait for each other
_CACHE = {True: 80 << 10, False: 40 << 10}  # bytes of input in a block of columns, by whether it has one tap
_NEAREST = 44 << 10  # bytes of input in a block of columns where images lie side by side
_PIECE = 18  # non-zeros of a row in such a block that are worth its beginning and end
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
    return _Shape(vectors, groups, channels * channel, blocks, -(-len(operation.weight) // tiles))


@dataclass(frozen=True, eq=False)
class _Packed:
    base: np.ndarray  # int64 [blocks]: the shift that a block's offsets count from
    first: np.ndarray  # int64 [tiles * blocks * rows + 1]: where the entries of each row and block begin
    order: np.ndarray  # int32 [tiles * blocks * rows]: which row of the layer that is
    offset: np.ndarray  # uint16 [entries]
    value: np.ndarray  # float32 [entries]


def _pack(found: Entries, shape: _Shape) -> _Packed:
    """Tile by tile, because what that takes beside the result is several times as large."""
    lowest, highest = int(found.shift.min(initial=0)), int(found.shift.max(initial=0))
    blocks = (highest - lowest) // shape.span + 1
    starts = np.arange(0, found.rows, shape.rows)
    edges = np.searchsorted(found.row, [*starts, found.rows])
    strips = []
    for start, begin, end in zip(starts, edges[:-1], edges[1:], strict=True):
        row, shift = found.row[begin:end] - start, found.shift[begin:end] - lowest
        rows = min(shape.rows, found.rows - int(start))
        strips.append(_strip(row, shift, found.value[begin:end], rows, blocks, shape))
    lengths, order, offset, value = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    order = (starts.repeat(blocks * shape.rows) + order).astype(np.int32)
    return _Packed(lowest + np.arange(blocks) * shape.span, first, order, offset, value)


def _strip(
    row: np.ndarray, shift: np.ndarray, number: np.ndarray, rows: int, blocks: int, shape: _Shape
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A tile of `rows` rows: entries and row of each piece [blocks * shape.rows], then offsets and values."""
    chain = _CHAIN.get(shape.vectors, 1)
    block = shift // shape.span
    counts = np.bincount(block * shape.rows + row, minlength=blocks * shape.rows)
    # Rows come by their count, so that the end of the inner loop is foreseen, and those that are not there last.
    by_count = np.where(np.arange(shape.rows) < rows, -counts.reshape(-1, shape.rows), 1)
    order = np.argsort(by_count, axis=1, kind="stable")
    place_of = np.empty(len(counts), np.int64)
    place_of[(np.arange(blocks)[:, None] * shape.rows + order).ravel()] = np.arange(len(counts))
    lengths = np.zeros(len(counts), np.int64)
    lengths[place_of] = -(-counts // chain) * chain
    first = np.cumsum(lengths) - lengths
    run = row * blocks + block
    sorted_by_run = np.argsort(run, kind="stable")  # in one pass: they are in order but for taps at a block's edge
    each = np.bincount(run, minlength=rows * blocks)
    within = np.arange(len(run)) - (np.cumsum(each) - each).repeat(each)
    place = first[place_of[(block * shape.rows + row)[sorted_by_run]]] + within
    offset, value = np.zeros(lengths.sum(), np.uint16), np.zeros(lengths.sum(), np.float32)
    offset[place] = (shift - block * shape.span)[sorted_by_run]
    value[place] = number[sorted_by_run]
    return lengths, order.ravel(), offset, value


def _stage(operation: Convolution | Linear, context: Context, layer: Layer, shape: _Shape, seconds: float) -> Stage:
    packed = _pack(entries(operation, layer.input), shape)
    rows, epilogue = len(operation.weight), operation.epilogue
    tiles, blocks = -(-rows // shape.rows), len(packed.base)
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    lines = shape.span // LINE if layer.input.lanes == 1 else 0
    fetch = -(-lines // shape.rows)  # of the next block's input, at each row
    parameters = [rows, shape.rows, shape.groups, blocks, layer.output.channel, 1 + has, has, fetch]
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
        _emit(module, vectors)


def _emit(module: Module, vectors: int) -> None:
    body = Body(module, f"sparsify_compact_{vectors}")
    b = body.builder
    buffers, constants, tile = body.arguments
    pointers = [body.pointer(constants, i) for i in range(9)]
    parameters, table, bases, firsts, offsets, values, bias, limits, order = pointers
    rows, tall, groups, blocks, channel, output, has, fetch = body.numbers(parameters, 8)
    group, strip = b.urem(tile, groups), b.udiv(tile, groups)
    start = b.mul(strip, tall)
    rest = b.sub(rows, start)
    count = b.select(b.icmp_signed("<", rest, tall), rest, tall)
    table = body.at(table, b.mul(group, body.const(4 * vectors)), I32)
    places = [[b.zext(body.load(table, 4 * i + j, I32), I64) for j in range(3)] for i in range(vectors)]
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    last = b.sub(blocks, body.const(1))
    with body.loop(0, blocks) as block:
        input = body.at(body.pointer(buffers, 0), body.load(bases, block.index, I64), F32)
        inputs = [body.bytes(input, place[0]) for place in places]
        following = body.load(bases, body.smaller(b.add(block.index, body.const(1)), last), I64)
        upcoming = body.at(body.bytes(body.pointer(buffers, 0), places[0][0]), following, F32)
        piece = b.mul(b.add(b.mul(strip, blocks), block.index), tall)
        is_first = b.icmp_signed("==", block.index, body.const(0))
        is_last = b.icmp_signed("==", block.index, last)
        with body.loop(0, count) as row:
            done = b.mul(row.index, fetch)
            with body.loop(done, b.add(done, fetch)) as line:
                body.prefetch(body.at(upcoming, b.mul(line.index, body.const(LINE)), F32), 2)
            there = b.zext(body.load(order, b.add(piece, row.index), I32), I64)
            plane = b.mul(there, channel)
            result = body.at(body.pointer(buffers, output), plane, F32)
            edges = [body.load(firsts, b.add(b.add(piece, row.index), body.const(i)), I64) for i in (0, 1)]
            begin = _begin(body, is_first, body.load(bias, there, F32), result, places)
            sums = _row(body, edges, offsets, values, inputs, begin)
            with b.if_else(is_last) as (ends, waits):
                with ends:
                    residual = body.at(body.pointer(buffers, has), plane, F32)
                    for total, place in zip(sums, places, strict=True):
                        body.finish_vector(total, place[1], place[2], result, residual, has, bounds)
                with waits:
                    for total, place in zip(sums, places, strict=True):
                        body.masked_store(total, body.bytes(result, place[1]), body.lanes(place[2]))
    body.done()


def _begin(
    body: Body, is_first: ir.Value, bias: ir.Value, result: ir.Value, places: list[list[ir.Value]]
) -> list[ir.Value]:
    """Where the sums of a row stand: at the bias, or where the block before left them."""
    b, kind = body.builder, body.module.vector
    with b.if_else(is_first) as (fresh, resumed):
        with fresh:
            splat = body.splat(bias)
            fresh_block = b.block
        with resumed:
            loaded = [b.load(body.bytes(result, place[1]), typ=kind, align=4) for place in places]
            resumed_block = b.block
    sums = []
    for vector in loaded:
        phi = b.phi(kind)
        phi.add_incoming(splat, fresh_block)
        phi.add_incoming(vector, resumed_block)
        sums.append(phi)
    return sums


def _row(
    body: Body, edges: list[ir.Value], offsets: ir.Value, values: ir.Value, inputs: list[ir.Value],
    begin: list[ir.Value],
) -> list[ir.Value]:  # fmt: skip
    """The sums after one row's non-zeros of a block."""
    b, kind = body.builder, body.module.vector
    chain, vectors = _CHAIN.get(len(inputs), 1), len(inputs)
    with body.loop(edges[0], edges[1], chain, begin + [body.zeros()] * (vectors * (chain - 1))) as entry:
        following = []
        for i in range(chain):
            at = b.add(entry.index, body.const(i))
            offset = b.zext(body.load(offsets, at, I16, align=2), I64)
            weight = body.splat(body.load(values, at, F32))
            for pointer, total in zip(inputs, entry.state[i * vectors : (i + 1) * vectors], strict=True):
                x = b.load(body.at(pointer, offset, F32), typ=kind, align=4)
                following.append(body.fma(weight, x, total))
        entry.following = following
    sums = entry.state[:vectors]
    for i in range(1, chain):
        sums = [b.fadd(a, c) for a, c in zip(sums, entry.state[i * vectors : (i + 1) * vectors], strict=True)]
    return sums
