"""Straight-line code: every non-zero is an instruction. The main path for sparse layers.

Source of the idea: Elsen, Dukhan, Gale and Simonyan, Fast Sparse ConvNets (2019), for sliding over positions
with the weights in the order of use; Wilkinson, Cheshmi and Dehnavi, Register Tiling for Unstructured
Sparsity (PLDI 2023), for keeping a block of rows in registers.
"""

from __future__ import annotations

import math

import numpy as np

from sparsify.engine import blocks, nonzeros
from sparsify.engine.encode import Encoder, encoder
from sparsify.engine.ir import I64, Body, Module
from sparsify.engine.memory import joined
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries, rows_together
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.target import Level
from sparsify.engine.tiles import Blocked, Layer, blocked_stage, cut_rows, panel_length, prepare, shares_positions

_LOADS: dict[Level, float] = {"avx512": 8e9, "avx2": 6.4e9}  # a second and thread
# Bytes of code and weights a second and thread, by the non-zeros of the whole program: up to the first number they
# are all cached, from the second one on most of them come from memory.
_FETCH = ((1 << 20, 30e9), (3 << 20, 14e9), (math.inf, 8e9))
_PART = 2048  # non-zeros whose code stays in the first-level cache from one vector to the next
_STRIP = 2500  # the same where they are those of several blocks, with what begins and ends
_ROW = 6  # each row's sum, in non-zeros
_AT_ONCE = 1 << 17  # non-zeros, about
_BYTES = 11  # of code and weights for each non-zero or column


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes, where the target has an encoder."""
    encode = encoder(context.target.level)
    if encode is None or not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None or layer.density >= context.tuning.dense_above:
        return None
    return Proposal(_seconds(layer, operation, encode, context), lambda: stage(operation, layer, encode, context))


def stage(operation: Convolution | Linear, layer: Layer, encode: Encoder, context: Context) -> Stage:
    """The stage of a layer."""
    blocked = _compile(operation, layer, encode, context)
    return blocked_stage("straight", operation, context, layer, blocked, _seconds(layer, operation, encode, context))


def _seconds(layer: Layer, operation: Convolution | Linear, encode: Encoder, context: Context) -> float:
    """Two loads a cycle: a weight for each non-zero and, where any row of a block uses it, a column. That counts
    twice where it lies across two lines, as most of several taps do, or far away. Or what the CPU multiplies."""
    rows, columns = len(operation.weight), operation.weight.size // len(operation.weight)
    used = columns * (1 - (1 - layer.density) ** min(rows, encode.rows)) * -(-rows // encode.rows)
    input = columns * len(layer.where.table) * encode.width * 4  # bytes, with one tap
    near = columns == operation.weight.shape[1] and input <= context.tuning.panel_bytes // 2
    loads = (layer.nonzeros + (1 if near else 2) * used) * len(layer.where.table)
    code = (layer.nonzeros + used) * _BYTES
    rate = next(rate for most, rate in _FETCH if context.nonzeros < most)
    products = layer.nonzeros * len(layer.where.table) / context.target.multiplications
    return max(loads / _LOADS[context.target.level], products, code / rate) / context.threads


def _compile(operation: Convolution | Linear, layer: Layer, encode: Encoder, context: Context) -> Blocked:
    rows = len(operation.weight)
    bounds = cut_rows(rows, encode.rows, context.threads, len(layer.where.table))
    each = nonzeros.by_row(operation.weight.reshape(rows, -1))
    edges = np.concatenate([[0], np.cumsum(each)])[bounds]  # rows are sorted, and stay within their block
    parts = max(1, -(-int(np.diff(edges).max()) // _PART))
    # Few positions are shared out by blocks.
    alone = parts > 1 or (layer.output.lanes == 1 and not shares_positions(len(layer.where.table), context.threads))
    strips = _strips(bounds, edges, 1 if alone else _STRIP)
    # What a residual brings along, and an output larger than the input, is further away: fetched early. So is what
    # many rows write at a time, more streams than the hardware foresees.
    residual = operation.epilogue.residual is not None
    many = layer.output.lanes == 1 and len(strips[0]) > 1
    ahead = residual or many or layer.output.channels > layer.input.channels
    turns = panel_length(layer, context, len(strips))
    # Clearing lanes costs nothing where there is a limit, and neighbouring rows share at most two vectors. No other
    # rows may begin in the last vector of a band.
    between, limits = layer.output.pitch - layer.output.width, (operation.epilogue.low, operation.epilogue.high)
    fills = layer.output.lanes == 1 and between < encode.width and bool(np.isfinite(limits).any())
    together = rows_together(layer.input, layer.output)
    fills &= not layer.panel and (
        together == layer.output.band_rows or together * layer.output.pitch % encode.width == 0
    )
    pieces, weights, records, length, floats = [], [], [], 0, 0
    for group in np.array_split(np.arange(len(strips)), min(len(strips), 1 + int(edges[-1]) // _AT_ONCE)):
        some, start = _blocks(operation, layer, [strips[number] for number in group], bounds, parts)
        code, places = blocks.straight(some, encode, layer.output.channel, operation.epilogue, ahead, turns, fills)
        stream, begins = blocks.streams(some, start, operation.bias, operation.epilogue)
        planes = start * layer.output.channel
        records.append(np.stack([length + places, (floats + begins) * 4, planes * 4], axis=1))
        pieces.append(code.tobytes())
        weights.append(stream)
        length += len(code)
        floats += len(stream)
    return Blocked(tuple(pieces), joined(weights), np.concatenate(records).astype(np.int64), parts, fills)


def _blocks(
    operation: Convolution | Linear, layer: Layer, strips: list[np.ndarray], bounds: np.ndarray, parts: int
) -> tuple[blocks.Blocks, np.ndarray]:
    """Some strips' blocks, each in so many parts, with their non-zeros in the order of use; and the first row of each
    function. A function does a strip, or a part of a block."""
    inner = np.concatenate(strips)
    edge = bounds[inner[0] : inner[-1] + 2]
    found = entries(operation, layer.input, int(edge[0]), int(edge[-1]))
    row = found.row + edge[0]
    block = np.searchsorted(edge, row, side="right") - 1
    order = np.lexsort((row, found.shift, block))
    count = np.bincount(block, minlength=len(inner))[:, None]
    each = (count // parts + (np.arange(parts) < count % parts)).ravel()  # as numpy splits arrays
    strip = np.repeat(np.arange(len(strips)), [len(strip) for strip in strips])
    part = np.tile(np.arange(parts), len(inner))
    some = blocks.Blocks(
        function=strip if parts == 1 else np.arange(len(part)),
        first=np.repeat(edge[:-1] - bounds[[strip[0] for strip in strips]][strip], parts),
        rows=np.repeat(np.diff(edge), parts),
        begins=part == 0,
        ends=part == parts - 1,
        edges=np.concatenate([[0], np.cumsum(each)]),
        row=(row - edge[block])[order],
        shift=found.shift[order],
        value=found.value[order],
    )
    return some, np.repeat(edge[:-1], parts)[some.opening]


def _strips(bounds: np.ndarray, edges: np.ndarray, most: int) -> list[np.ndarray]:
    """Which blocks share a function: neighbours, as many as leave its code in the first-level cache. What they
    read is then brought there once for all of them, and what they write lies together."""
    size = int(np.diff(edges).max()) + _ROW * int(np.diff(bounds).max())
    count = len(bounds) - 1
    return np.array_split(np.arange(count), -(-count // max(1, most // size)))


def emit(module: Module) -> None:
    """void sparsify_block(buffers, constants, tile): run one block function over one panel."""
    body = Body(module, "sparsify_block")
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, records, table, stream, code = (body.pointer(constants, i) for i in range(5))
    count, parts, panel, vectors, output, residual = body.numbers(parameters, 6)
    first = b.mul(b.udiv(tile, count), panel)
    here = body.smaller(b.sub(vectors, first), panel)
    begin = b.mul(b.urem(tile, count), parts)
    with body.loop(begin, b.add(begin, parts)) as part:
        record = body.at(records, b.mul(part.index, body.const(3)), I64)
        code_at, stream_at, plane_at = body.numbers(record, 3)
        arguments = [
            body.pointer(buffers, 0),
            body.bytes(body.pointer(buffers, output), plane_at),
            body.bytes(stream, stream_at),
            body.bytes(table, b.mul(first, body.const(16))),
            here,
            body.bytes(body.pointer(buffers, residual), plane_at),
        ]
        body.call(body.bytes(code, code_at), blocks.TYPE, arguments)
    body.done()
