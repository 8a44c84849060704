"""Linear on a few vectors, where streaming the weights is all the work.

Sparse: SELL-C-sigma (Kreutzer, Hager, Wellein, Fehske and Bishop, 2014). Rows are sorted by their count of
non-zeros and put in slices of one vector; a slice's non-zeros lie side by side, so that a step is one vector
of values, one of 16-bit columns, one gather and one multiplication. Dense: rows against the vector.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I16, I32, I64, Body, Module
from sparsify.engine.memory import copied
from sparsify.engine.program import Convolution, Epilogue, Linear, Operation
from sparsify.engine.sell import COLUMNS, Slices, in_slices
from sparsify.engine.stage import Context, Stage

_SPARSE_RATE, _DENSE_RATE = 9e9, 36e9  # bytes of weights a second and thread
_DENSE_ROWS = 4  # rows of the dense form in work at a time


def propose(operation: Operation, context: Context) -> Stage | None:
    """Linear (or a 1 x 1 convolution of one position) on values in C order."""
    weight = _matrix(operation, context)
    if weight is None:
        return None
    assert isinstance(operation, Linear | Convolution)
    shape = context.values[operation.input].shape
    images = int(np.prod(shape)) // weight.shape[1]
    nonzeros = int(np.count_nonzero(weight))
    sparse = in_slices(weight, context.target.width) if weight.shape[1] <= COLUMNS else None
    dense_seconds = weight.size * 4 / _DENSE_RATE
    if sparse is not None and sparse.value.size * 6 / _SPARSE_RATE < dense_seconds:
        return _sparse_stage(operation, weight, sparse, images, nonzeros, context)
    return _dense_stage(operation, weight, images, nonzeros, context)


def _matrix(operation: Operation, context: Context) -> np.ndarray | None:
    """The weight [o, k] if this is a matrix times C-ordered vectors."""
    if isinstance(operation, Linear):
        weight = operation.weight
    elif isinstance(operation, Convolution) and context.values[operation.output].shape[2:] == (1, 1):
        if operation.weight.shape[2:] != (1, 1) or operation.groups != 1 or any(operation.padding):
            return None
        weight = operation.weight[:, :, 0, 0]
        if int(np.prod(context.values[operation.input].shape)) != weight.shape[1]:
            return None
    else:
        return None
    values = (operation.input, operation.output)
    if any(context.layouts[name] is not None for name in values) or weight.size == 0:
        return None
    return np.ascontiguousarray(weight)


def _cut(first: np.ndarray, tiles: int) -> np.ndarray:
    """Bounds of tiles with nearly equal steps: int64 [tiles + 1] slices."""
    wanted = np.linspace(0, first[-1], tiles + 1)
    bounds = np.searchsorted(first, wanted)
    bounds[0], bounds[-1] = 0, len(first) - 1
    return np.maximum.accumulate(bounds).astype(np.int64)


def _sparse_stage(
    operation: Linear | Convolution,
    weight: np.ndarray,
    slices: Slices,
    images: int,
    nonzeros: int,
    context: Context,
) -> Stage:
    width, rows = context.target.width, len(weight)
    bias = np.zeros(len(slices.first) * width, np.float32)
    bias[:rows] = operation.bias[slices.order]
    tiles = min(len(slices.first) - 1, context.threads * context.tuning.tiles_per_thread)
    bounds = _cut(slices.first, tiles)
    parameters = _parameters(operation, weight, images)
    constants = (
        parameters,
        bounds,
        slices.first,
        slices.order,
        slices.value,
        slices.column,
        bias,
        _limits(operation),
    )
    seconds = slices.value.size * 6 * images / _SPARSE_RATE / context.threads
    return _stage("sparsify_matvec", operation, constants, tiles, images, nonzeros, weight, seconds)


def _dense_stage(
    operation: Linear | Convolution, weight: np.ndarray, images: int, nonzeros: int, context: Context
) -> Stage:
    tiles = -(-len(weight) // _DENSE_ROWS)
    parameters = _parameters(operation, weight, images)
    constants = (parameters, weight, operation.bias, _limits(operation))
    seconds = weight.size * 4 * images / _DENSE_RATE / context.threads
    return _stage("sparsify_matvec_dense", operation, constants, tiles, images, nonzeros, weight, seconds)


def _parameters(operation: Linear | Convolution, weight: np.ndarray, images: int) -> np.ndarray:
    has = operation.epilogue.residual is not None
    return np.array([images, *weight.shape, 1 + has, has], np.int64)


def _limits(operation: Linear | Convolution) -> np.ndarray:
    return np.array([operation.epilogue.low, operation.epilogue.high], np.float32)


def _stage(
    function: str, operation: Linear | Convolution, constants: tuple[np.ndarray, ...], tiles: int,
    images: int, nonzeros: int, weight: np.ndarray, seconds: float,
) -> Stage:  # fmt: skip
    epilogue: Epilogue = operation.epilogue
    residual = () if epilogue.residual is None else (epilogue.residual,)
    density = nonzeros / weight.size
    return Stage(
        kernel="matvec",
        function=function,
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=tiles,
        constants=tuple(copied(np.ascontiguousarray(array)) for array in constants),
        flops=2.0 * nonzeros * images,
        density=density,
        seconds=seconds,
        why=f"{images} vectors, " + ("SELL" if "dense" not in function else "dense rows"),
    )


def emit(module: Module) -> None:
    """void sparsify_matvec[_dense](buffers, constants, tile)."""
    _emit_sparse(module)
    _emit_dense(module)


def _finish(
    body: Body, total: ir.Value, limits: ir.Value, residual: ir.Value, has: ir.Value, place: ir.Value
) -> ir.Value:
    """Residual and clamp of one number."""
    b = body.builder
    before = b.block
    with b.if_then(b.icmp_signed("!=", has, body.const(0))):
        added = b.fadd(total, body.load(residual, place, F32))
        inside = b.block
    result = b.phi(F32)
    result.add_incoming(total, before)
    result.add_incoming(added, inside)
    low, high = (body.load(limits, i, F32) for i in (0, 1))
    return body.minimum(high, body.maximum(low, result))


def _emit_sparse(module: Module) -> None:
    body = Body(module, "sparsify_matvec")
    b, width, kind = body.builder, module.width, module.vector
    buffers, constants, tile = body.arguments
    parameters, bounds, first, order, values, columns, bias, limits = (body.pointer(constants, i) for i in range(8))
    images, rows, length, output, has = body.numbers(parameters, 5)
    lanes = b.alloca(kind)
    begin = body.load(bounds, tile, I64)
    end = body.load(bounds, b.add(tile, body.const(1)), I64)
    with body.loop(0, images) as image:
        x = body.at(body.pointer(buffers, 0), b.mul(image.index, length), F32)
        y = body.at(body.pointer(buffers, output), b.mul(image.index, rows), F32)
        residual = body.at(body.pointer(buffers, has), b.mul(image.index, rows), F32)
        with body.loop(begin, end) as piece:
            start, stop = (
                body.load(first, piece.index, I64),
                body.load(first, b.add(piece.index, body.const(1)), I64),
            )
            initial = b.load(body.at(bias, piece.index, kind), typ=kind, align=4)
            with body.loop(start, stop, 1, [initial]) as step:
                weight = b.load(body.at(values, step.index, kind), typ=kind, align=4)
                narrow = b.load(
                    body.at(columns, step.index, ir.VectorType(I16, width)),
                    typ=ir.VectorType(I16, width),
                    align=2,
                )
                found = body.gather(x, b.zext(narrow, ir.VectorType(I32, width)))
                step.following = [body.fma(weight, found, step.state[0])]
            b.store(step.state[0], lanes)
            base = b.mul(piece.index, body.const(width))
            rest = b.sub(rows, base)
            count = b.select(b.icmp_signed("<", rest, body.const(width)), rest, body.const(width))
            with body.loop(0, count) as lane:
                place = b.sext(body.load(order, b.add(base, lane.index), I32), I64)
                total = body.load(lanes, lane.index, F32)
                body.store(_finish(body, total, limits, residual, has, place), y, place)
    body.done()


def _emit_dense(module: Module) -> None:
    body = Body(module, "sparsify_matvec_dense")
    b, width, kind = body.builder, module.width, module.vector
    buffers, constants, tile = body.arguments
    parameters, weights, bias, limits = (body.pointer(constants, i) for i in range(4))
    images, rows, length, output, has = body.numbers(parameters, 5)
    start = b.mul(tile, body.const(_DENSE_ROWS))
    whole = b.and_(length, body.const(-width))
    last_row = b.sub(rows, body.const(1))
    with body.loop(0, images) as image:
        x = body.at(body.pointer(buffers, 0), b.mul(image.index, length), F32)
        y = body.at(body.pointer(buffers, output), b.mul(image.index, rows), F32)
        residual = body.at(body.pointer(buffers, has), b.mul(image.index, rows), F32)
        # Past the last row the last one is computed again.
        chosen = [b.add(start, body.const(i)) for i in range(_DENSE_ROWS)]
        chosen = [b.select(b.icmp_signed("<", r, last_row), r, last_row) for r in chosen]
        lines = [body.at(weights, b.mul(r, length), F32) for r in chosen]
        with body.loop(0, whole, width, [body.zeros()] * _DENSE_ROWS) as turn:
            vector = b.load(body.at(x, turn.index, F32), typ=kind, align=4)
            turn.following = [
                body.fma(b.load(body.at(line, turn.index, F32), typ=kind, align=4), vector, total)
                for line, total in zip(lines, turn.state, strict=True)
            ]
        sums = [b.fadd(body.reduce(v), body.load(bias, r, F32)) for v, r in zip(turn.state, chosen, strict=True)]
        with body.loop(whole, length, 1, sums) as turn:
            number = body.load(x, turn.index, F32)
            turn.following = [
                body.fma(body.load(line, turn.index, F32), number, total)
                for line, total in zip(lines, turn.state, strict=True)
            ]
        for r, total in zip(chosen, turn.state, strict=True):
            body.store(_finish(body, total, limits, residual, has, r), y, r)
    body.done()
