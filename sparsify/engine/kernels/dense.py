"""Dense layers with positions in the lanes: some output channels by some vectors of positions at a time.

Where images lie side by side every load is a whole aligned vector and no lane is idle, so the tile of sums stays
in registers as it will be stored. Zeros are multiplied like any number. Other layouts work too: this is the
kernel for dense layers that `channels` cannot take.
"""

from __future__ import annotations

from operator import itemgetter

import numpy as np

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
    "avx512": ((8, 3), (12, 2), (28, 1)),
    "avx2": ((4, 3), (6, 2), (12, 1)),
    "generic": ((4, 3), (6, 2), (12, 1)),
}  # channels and vectors of positions in a tile: as many as leave registers for the operands
_AHEAD = 2 << 10
_RATE, _LOADS = 7e9, 8e9  # vector multiplications, and loads, a second and thread
_LINE = {True: 0.4e-9, False: 2.4e-9}  # seconds to bring a vector near, by whether the second-level cache has it


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
    """A column of a tile takes what its multiplications, its loads or, from beyond the second-level cache, its
    input takes, whichever is longest."""
    together, across = shape
    groups = groups_of(operation)
    blocks = groups * -(-len(operation.weight) // groups // together)
    columns, vectors = operation.weight.size // len(operation.weight), len(layer.where.table)
    panel = panel_length(layer, context, blocks) * layer.input.channels
    line = _LINE[panel * context.target.width * 4 <= context.tuning.panel_bytes]
    column = max(together * across / _RATE, (together + across) / _LOADS, across * line)
    return blocks * columns * -(-vectors // across) * column / context.threads


def _stage(
    operation: Convolution | Linear, context: Context, layer: Layer, shape: tuple[int, int], seconds: float
) -> Stage:
    together, across = shape
    shifts, records, panels = in_panels(operation, layer.input, together, together)
    vectors = up(len(layer.where.table), across)
    length = up(panel_length(layer, context, len(records)), across)
    table = np.repeat(layer.where.table[-1:], vectors, axis=0)  # filled up with idle vectors
    table[:, 2] = 0
    table[: len(layer.where.table)] = layer.where.table
    epilogue = operation.epilogue
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has = len(residual)
    parameters = [len(records), length, vectors, len(shifts), layer.output.channel, 1 + has, has or 1, has]
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (np.array(parameters, np.int64), records, table, shifts, panels, limits)
    return Stage(
        kernel="dense",
        function=_name(shape),
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=len(records) * -(-vectors // length),
        constants=constants,
        layouts={operation.input: layer.input, **dict.fromkeys((operation.output, *residual), layer.output)},
        sweep=sweep(operation, layer.input, layer.output, length, len(records)),
        flops=2.0 * layer.nonzeros * layer.where.useful,
        density=layer.density,
        seconds=seconds,
        why=f"density {layer.density:.0%}, tiles of {together} channels x {across} vectors",
    )


def _name(shape: tuple[int, int]) -> str:
    return f"sparsify_dense_{shape[0]}x{shape[1]}"


def emit(module: Module) -> None:
    """void sparsify_dense_<channels>x<vectors>(buffers, constants, tile): a row block over a panel of positions."""
    for shape in _SHAPES[module.target.level]:
        _emit(module, shape)


def _emit(module: Module, shape: tuple[int, int]) -> None:
    together, across = shape
    body = Body(module, _name(shape))
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, records, table, shifts, weights, limits = (body.pointer(constants, i) for i in range(6))
    blocks, length, count, depth, channel, output, added, has = body.numbers(parameters, 8)
    record = body.at(records, b.mul(b.urem(tile, blocks), body.const(4)), I64)
    weights_at, input_at, first_row, rows = body.numbers(record, 4)
    block = body.bytes(weights, weights_at)
    input = body.bytes(body.pointer(buffers, 0), input_at)
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    first = b.mul(b.udiv(tile, blocks), length)
    with body.loop(first, body.smaller(b.add(first, length), count), across) as turn:
        entry = body.at(table, b.mul(turn.index, body.const(4)), I32)
        places = [[b.zext(body.load(entry, 4 * i + j, I32), I64) for j in range(3)] for i in range(across)]
        inputs = [body.bytes(input, place[0]) for place in places]
        bias = [body.splat(body.load(block, i, F32)) for i in range(together)]
        with body.loop(0, depth, 1, [total for total in bias for _ in range(across)]) as column:
            shift = b.sext(body.load(shifts, column.index, I32), I64)
            vectors = [b.load(body.bytes(p, shift), typ=module.vector, align=4) for p in inputs]
            line = body.at(block, b.mul(b.add(column.index, body.const(1)), body.const(together)), F32)
            body.prefetch(body.bytes(line, body.const(_AHEAD)), 1)
            column.following = []
            for i in range(together):
                weight = body.splat(body.load(line, i, F32))
                for j, vector in enumerate(vectors):
                    column.following.append(body.fma(weight, vector, column.state[i * across + j]))
        for i in range(together):
            with b.if_then(b.icmp_signed("<", body.const(i), rows)):
                plane = b.mul(b.add(first_row, body.const(i)), channel)
                result = body.at(body.pointer(buffers, output), plane, F32)
                residual = body.at(body.pointer(buffers, added), plane, F32)
                for j, (_, offset, mask) in enumerate(places):
                    further = b.add(offset, body.const(2 * across * LINE))  # of a tile soon to come
                    body.prefetch(body.bytes(result, further), 1, write=True)
                    body.prefetch(body.bytes(residual, further), 1)
                    body.finish_vector(column.state[i * across + j], offset, mask, result, residual, has, bounds)
    body.done()
