"""Straight-line code: every non-zero is an instruction. The main path for sparse layers.

Source of the idea: Elsen, Dukhan, Gale and Simonyan, Fast Sparse ConvNets (2019), for sliding over positions
with the weights in the order of use; Wilkinson, Cheshmi and Dehnavi, Register Tiling for Unstructured
Sparsity (PLDI 2023), for keeping a block of rows in registers.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from sparsify.engine import blocks
from sparsify.engine.encode import Encoder, encoder
from sparsify.engine.ir import I32, I64, POINTER, Body, Module
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.tiles import Blocked, Layer, blocked_stage, cut_rows, prepare

_LOADS = 8e9  # a second and thread
# Bytes of code and weights a second and thread, by the non-zeros of the whole program: up to the first number they
# are all cached, from the second one on most of them come from memory.
_FETCH = ((1 << 20, 30e9), (3 << 20, 14e9), (math.inf, 8e9))
_PIECES = 8  # that a panel is cut into, to fetch the next block between them
_PART = 2048  # non-zeros whose code stays in the first-level cache from one vector to the next
_STRIP = 2500  # the same where they are those of several blocks, with what begins and ends
_ROW = 6  # each row's sum, in non-zeros
_BYTES = 11  # of code and weights for each non-zero or column


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes, where the target has an encoder."""
    encode = encoder(context.target.level)
    if encode is None or not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None or layer.density >= context.tuning.dense_above:
        return None
    seconds = _seconds(layer, operation, encode, context)

    def build() -> Stage:
        blocked = _compile(operation, layer, encode, context.threads)
        return blocked_stage("straight", operation, context, layer, blocked, seconds)

    return Proposal(seconds, build)


def _seconds(layer: Layer, operation: Convolution | Linear, encode: Encoder, context: Context) -> float:
    """Two loads a cycle: a weight for each non-zero and, where any row of a block uses it, a column. That counts
    twice where it lies across two lines, as most of several taps do, or far away."""
    rows, columns = len(operation.weight), operation.weight[0].size
    used = columns * (1 - (1 - layer.density) ** min(rows, encode.rows)) * -(-rows // encode.rows)
    input = columns * len(layer.where.table) * encode.width * 4  # bytes, with one tap
    near = columns == operation.weight.shape[1] and input <= context.tuning.panel_bytes // 2
    loads = (layer.nonzeros + (1 if near else 2) * used) * len(layer.where.table)
    code = (layer.nonzeros + used) * _BYTES
    rate = next(rate for most, rate in _FETCH if context.nonzeros < most)
    return (loads / _LOADS + code / rate) / context.threads


def _compile(operation: Convolution | Linear, layer: Layer, encode: Encoder, threads: int) -> Blocked:
    found = entries(operation, layer.input)
    bounds = cut_rows(found.rows, encode.rows, threads, len(layer.where.table))
    order = np.lexsort((found.row, found.shift, np.searchsorted(bounds, found.row, side="right")))
    edges = np.searchsorted(found.row, bounds)  # rows are sorted, and stay within their block
    parts = max(1, -(-int(np.diff(edges).max()) // _PART))
    # What a residual brings along, and an output larger than the input, is further away: fetched early.
    far = 2 * encode.width if layer.output.lanes == 1 else layer.output.step
    ahead = far * 4 if operation.epilogue.residual is not None or layer.output.channels > layer.input.channels else 0
    pieces, streams, records, length, floats = [], [], [], 0, 0
    alone = parts > 1 or layer.output.lanes == 1  # few positions are shared out by blocks
    for inner in _strips(bounds, edges, 1 if alone else _STRIP):
        start, end = bounds[inner[0]], bounds[inner[-1] + 1]
        for number in range(parts):
            strip = []
            for block in inner:
                chosen = np.array_split(order[edges[block] : edges[block + 1]], parts)[number]
                row, low = found.row[chosen], bounds[block]
                count = int(bounds[block + 1] - low)
                strip.append(blocks.Rows(int(low - start), count, row - low, found.shift[chosen], found.value[chosen]))
            place = blocks.Part(number == 0, number == parts - 1)
            text = blocks.straight(strip, encode, layer.output.channel, operation.epilogue, place, ahead)
            text += b"\xcc" * (-len(text) % 64)
            stream = blocks.stream(strip, operation.bias[start:end], operation.epilogue)
            records.append((length, floats * 4, start * layer.output.channel * 4, len(text), stream.nbytes))
            pieces.append(text)
            streams.append(stream)
            length += len(text)
            floats += len(stream)
    return Blocked(b"".join(pieces), np.concatenate(streams), np.array(records, np.int64), parts)


def _strips(bounds: np.ndarray, edges: np.ndarray, most: int) -> list[np.ndarray]:
    """Which blocks share a function: neighbours, as many as leave its code in the first-level cache. What they
    read is then brought there once for all of them, and what they write lies together."""
    size = int(np.diff(edges).max()) + _ROW * int(np.diff(bounds).max())
    count = len(bounds) - 1
    return np.array_split(np.arange(count), -(-count // max(1, most // size)))


def emit(module: Module) -> None:
    """void sparsify_block(buffers, constants, tile): run one block function over one panel.

    Meanwhile the code and the weights of the next block are brought into the second-level cache: a core
    fetches instructions from further away one line at a time, many times slower than it runs them.
    """
    body = Body(module, "sparsify_block")
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, records, table, stream, code = (body.pointer(constants, i) for i in range(5))
    count, parts, panel, vectors, output, residual = body.numbers(parameters, 6)
    first = b.mul(b.udiv(tile, count), panel)
    here = body.smaller(b.sub(vectors, first), panel)
    begin = b.mul(b.urem(tile, count), parts)
    with body.loop(begin, b.add(begin, parts)) as part:
        following = b.add(part.index, body.const(1))
        following = b.select(b.icmp_signed("<", following, b.mul(count, parts)), following, body.const(0))
        record, upcoming = (body.at(records, b.mul(i, body.const(5)), I64) for i in (part.index, following))
        code_at, stream_at, plane_at, code_length, stream_length = body.numbers(record, 5)
        next_code, next_stream, _, next_code_length, next_stream_length = body.numbers(upcoming, 5)
        with b.if_then(b.icmp_signed("==", part.index, begin)):
            _fetch(body, body.bytes(code, code_at), body.const(0), code_length)
            _fetch(body, body.bytes(stream, stream_at), body.const(0), stream_length)
        step = b.add(b.udiv(here, body.const(_PIECES)), body.const(1))
        with body.loop(0, b.udiv(b.add(here, b.sub(step, body.const(1))), step)) as piece:
            done = b.mul(piece.index, step)
            more = body.smaller(b.sub(here, done), step)
            for base, start, length in (
                (code, next_code, next_code_length),
                (stream, next_stream, next_stream_length),
            ):
                edges = [b.and_(b.udiv(b.mul(length, e), here), body.const(-64)) for e in (done, b.add(done, more))]
                _fetch(body, body.bytes(base, start), *edges)
            arguments = [
                body.pointer(buffers, 0),
                body.bytes(body.pointer(buffers, output), plane_at),
                body.bytes(stream, stream_at),
                body.bytes(table, b.mul(b.add(first, done), body.const(16))),
                more,
                body.bytes(body.pointer(buffers, residual), plane_at),
            ]
            body.call(body.bytes(code, code_at), blocks.TYPE, arguments)
    body.done()


def _fetch(body: Body, base: ir.Value, start: ir.Value, stop: ir.Value) -> None:
    """Bring base[start:stop] (bytes) into the second-level cache."""
    prefetch = body.declared("llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
    hints = [ir.Constant(I32, hint) for hint in (0, 2, 1)]  # read, second level, data
    with body.loop(start, stop, 64) as line:
        body.builder.call(prefetch, [body.bytes(base, line.index), *hints])
