"""The generic loop: offsets and values read from arrays, for every CPU that LLVM knows."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.tiles import Layer, prepare

_TOGETHER = 8  # vectors of positions in registers
_RATE = 1e9  # vector multiplications a second and thread
_ROWS = 8  # output rows in a tile


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes."""
    if not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None:
        return None
    seconds = layer.nonzeros * len(layer.where.table) / _RATE / context.threads
    return Proposal(seconds, lambda: _stage(operation, context, layer, seconds))


def _stage(operation: Convolution | Linear, context: Context, layer: Layer, seconds: float) -> Stage:
    found = entries(operation, layer.input)
    first = np.searchsorted(found.row, np.arange(found.rows + 1)).astype(np.int64)
    epilogue = operation.epilogue
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    parameters = np.array([found.rows, len(layer.where.table), layer.output.channel, 1 + has, has], np.int64)
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (parameters, layer.where.table, first, found.shift, found.value, operation.bias, limits)
    flops = 2.0 * layer.nonzeros * layer.where.useful
    return Stage(
        kernel="loop",
        function="sparsify_loop",
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=-(-found.rows // _ROWS),
        constants=constants,
        layouts={operation.input: layer.input, **dict.fromkeys((operation.output, *residual), layer.output)},
        flops=flops,
        density=layer.density,
        seconds=seconds,
        why=f"density {layer.density:.0%}, weights read from arrays",
    )


def emit(module: Module) -> None:
    """void sparsify_loop(buffers, constants, tile): all positions of a few output rows."""
    body = Body(module, "sparsify_loop")
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, table, first, shifts, values, bias, limits = (body.pointer(constants, i) for i in range(7))
    rows, vectors, channel, output, has = body.numbers(parameters, 5)
    start = b.mul(tile, body.const(_ROWS))
    stop = b.add(start, body.const(_ROWS))
    stop = b.select(b.icmp_signed("<", stop, rows), stop, rows)
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    whole = b.and_(vectors, body.const(-_TOGETHER))
    input = body.pointer(buffers, 0)
    for begin, end, together in ((body.const(0), whole, _TOGETHER), (whole, vectors, 1)):
        with body.loop(begin, end, together) as turn, body.loop(start, stop) as row:
            there = b.mul(row.index, channel)
            result = body.at(body.pointer(buffers, output), there, F32)
            residual = body.at(body.pointer(buffers, has), there, F32)
            places = [[_place(body, table, turn.index, i, column) for column in range(3)] for i in range(together)]
            pointers = [body.bytes(input, place[0]) for place in places]
            initial = [body.splat(body.load(bias, row.index, F32))] * together
            edges = [body.load(first, i, I64) for i in (row.index, b.add(row.index, body.const(1)))]
            with body.loop(edges[0], edges[1], 1, initial) as entry:
                shift = body.load(shifts, entry.index, I64)
                weight = body.splat(body.load(values, entry.index, F32))
                entry.following = [
                    body.fma(weight, b.load(body.at(p, shift, F32), typ=module.vector, align=4), total)
                    for p, total in zip(pointers, entry.state, strict=True)
                ]
            for (_, offset, mask), total in zip(places, entry.state, strict=True):
                body.finish_vector(total, offset, mask, result, residual, has, bounds)
    body.done()


def _place(body: Body, table: ir.Value, vector: ir.Value, further: int, column: int) -> ir.Value:
    b = body.builder
    at = b.add(b.mul(b.add(vector, body.const(further)), body.const(4)), body.const(column))
    return b.zext(body.load(table, at, I32), I64)
