"""Straight-line code: every non-zero is an instruction. The main path for sparse layers.

Source of the idea: Elsen, Dukhan, Gale and Simonyan, Fast Sparse ConvNets (2019), for sliding over positions
with the weights in the order of use; Wilkinson, Cheshmi and Dehnavi, Register Tiling for Unstructured
Sparsity (PLDI 2023), for keeping a block of rows in registers.
"""

from __future__ import annotations

import numpy as np

from sparsify.engine import blocks
from sparsify.engine.encode import Encoder, encoder
from sparsify.engine.ir import I64, Body, Module
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries
from sparsify.engine.stage import Context, Stage
from sparsify.engine.tiles import Blocked, blocked_stage, cut_rows, prepare


def propose(operation: Operation, context: Context) -> Stage | None:
    """Any Convolution or Linear on planes, where the target has an encoder."""
    encode = encoder(context.target.level)
    if encode is None or not isinstance(operation, Convolution | Linear):
        return None
    shape = prepare(operation, context)
    if shape is None or shape.density > context.tuning.dense_above:
        return None
    return blocked_stage("straight", operation, context, shape, _compile(operation, shape, encode, context.threads))


def _compile(operation: Convolution | Linear, shape, encode: Encoder, threads: int) -> Blocked:
    found = entries(operation, shape.input)
    bounds = cut_rows(found.rows, encode.rows, threads)
    order = np.lexsort((found.row, found.shift, np.searchsorted(bounds, found.row, side="right")))
    edges = np.searchsorted(found.row, bounds)  # rows are sorted, and stay within their block
    code, streams, records = b"", [], []
    offset = 0
    pieces = []
    for start, stop, a, b in zip(bounds[:-1], bounds[1:], edges[:-1], edges[1:], strict=True):
        chosen = order[a:b]
        rows = blocks.Rows(int(stop - start), found.row[chosen] - start, found.shift[chosen], found.value[chosen])
        text = blocks.straight(rows, encode, shape.output.channel, operation.epilogue)
        text += b"\xcc" * (-len(text) % 64)
        pieces.append(text)
        streams.append(blocks.stream(rows, operation.bias[start:stop], operation.epilogue))
        records.append((offset, sum(map(len, streams[:-1])) * 4, start * shape.output.channel * 4, stop - start))
        offset += len(text)
    code = b"".join(pieces)
    return Blocked(code, np.concatenate(streams), np.array(records, np.int64))


def emit(module: Module) -> None:
    """void sparsify_block(buffers, constants, tile): call one block function for one panel."""
    body = Body(module, "sparsify_block")
    builder = body.builder
    buffers, constants, tile = body.arguments
    parameters, records, table, stream, code = (body.pointer(constants, i) for i in range(5))
    count, panel, vectors, output, residual = body.numbers(parameters, 5)
    first = builder.mul(builder.udiv(tile, count), panel)
    record = body.at(records, builder.mul(builder.urem(tile, count), body.const(4)), I64)
    code_at, stream_at, plane_at = body.numbers(record, 3)
    rest = builder.sub(vectors, first)
    here = builder.select(builder.icmp_signed("<", rest, panel), rest, panel)
    arguments = [
        body.pointer(buffers, 0),
        body.bytes(body.pointer(buffers, output), plane_at),
        body.bytes(stream, stream_at),
        body.bytes(table, builder.mul(first, body.const(16))),
        here,
        body.bytes(body.pointer(buffers, residual), plane_at),
    ]
    body.call(body.bytes(code, code_at), blocks.TYPE, arguments)
    body.done()
