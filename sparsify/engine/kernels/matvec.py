"""Linear on a few vectors, where streaming the weights is all the work.

Sparse: where the CPU can permute two registers, `segments`; else SELL-C-sigma slices, rows sorted by their count of
non-zeros (Kreutzer, Hager, Wellein, Fehske and Bishop, 2014). Dense: rows against the vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine import nonzeros, segments, sell
from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.engine.layout import up
from sparsify.engine.memory import Written
from sparsify.engine.nonzeros import Weight
from sparsify.engine.program import Convolution, Epilogue, Linear, Operation
from sparsify.engine.stage import Context, Stage
from sparsify.engine.target import Target
from sparsify.engine.unread import Unread

_VECTOR = {"gathered": 4.7e-9, "permuted": 3.0e-9}  # seconds for a vector of non-zeros, on one thread
_PIECE = 10e-9  # seconds for a segment of some slices
_DENSE_RATE = 36e9  # bytes of weights a second and thread
_TOGETHER = 4  # slices of rows in work at a time, where operands are permuted
_DENSE_ROWS = 4  # rows of the dense form in work at a time


def propose(operation: Operation, context: Context) -> Stage | None:
    """Linear (or a 1 x 1 convolution of one position) on values in C order."""
    weight = _matrix(operation, context)
    if weight is None:
        return None
    assert isinstance(operation, Linear | Convolution)
    images = int(np.prod(context.values[operation.input].shape)) // weight.shape[1]
    dense = weight.size * 4 * images / _DENSE_RATE / context.threads
    if weight.shape[1] <= sell.COLUMNS and operation.nonzeros / context.target.width * _VECTOR["permuted"] < dense:
        packed = _packed(weight, context.target)
        seconds = packed.seconds * images / context.threads
        if seconds < dense:
            return _sparse_stage(operation, weight, packed, images, seconds, context)
    return _dense_stage(operation, weight, images, dense, context)


@dataclass(frozen=True, eq=False)
class _Packed:
    """A sparse matrix in one of its forms."""

    form: str
    order: np.ndarray  # int32 [rows of whole slices]: the matrix's row that each row here is
    arrays: tuple[np.ndarray, ...]
    first: np.ndarray  # int64 [slices + 1]: the vectors of non-zeros before each slice
    seconds: float  # of one vector on one thread


def _packed(weight: Weight, target: Target) -> _Packed:
    """The form that is read fastest."""
    found = nonzeros.find(weight)
    counts = np.sort(np.bincount(found[0], minlength=len(weight)))[::-1]
    seconds = sell.steps(counts, target.width).sum() * _VECTOR["gathered"]
    if target.level == "avx512":
        permuted = _permuted(weight.shape, found, target.width)
        if permuted.seconds < seconds:
            return permuted
    slices = sell.in_slices(len(weight), found, target.width)
    return _Packed("gathered", slices.order, (slices.first, slices.value, slices.column), slices.first, seconds)


def _permuted(shape: tuple[int, ...], found: nonzeros.Found, width: int) -> _Packed:
    rows, count = up(shape[0], _TOGETHER * width), -(-shape[1] // segments.SEGMENT)
    made = segments.in_segments((_TOGETHER, rows // _TOGETHER, shape[1]), found, width)
    seconds = sum(n * _VECTOR[form] for n, form in zip(made.vectors, ("permuted", "gathered"), strict=True))
    seconds += (len(made.first) - 1) * _PIECE
    return _Packed("permuted", np.arange(rows, dtype=np.int32), made.arrays, made.first[::count], seconds)


def _matrix(operation: Operation, context: Context) -> Weight | None:
    """The weight [o, k] if this is a matrix times C-ordered vectors."""
    if isinstance(operation, Linear):
        weight = operation.weight
    elif isinstance(operation, Convolution) and context.values[operation.output].shape[2:] == (1, 1):
        if operation.weight.shape[2:] != (1, 1) or operation.groups != 1 or any(operation.padding):
            return None
        weight = operation.weight.reshape(*operation.weight.shape[:2])
        if int(np.prod(context.values[operation.input].shape)) != weight.shape[1]:
            return None
    else:
        return None
    values = (operation.input, operation.output)
    if any(context.layouts[name] is not None for name in values) or weight.size == 0:
        return None
    return weight


def _cut(first: np.ndarray, tiles: int) -> np.ndarray:
    """Bounds of tiles with nearly equal steps: int64 [tiles + 1] slices."""
    wanted = np.linspace(0, first[-1], tiles + 1)
    bounds = np.searchsorted(first, wanted)
    bounds[0], bounds[-1] = 0, len(first) - 1
    return np.maximum.accumulate(bounds).astype(np.int64)


def _sparse_stage(
    operation: Linear | Convolution, weight: Weight, packed: _Packed, images: int, seconds: float, context: Context
) -> Stage:
    slices, rows = len(packed.first) - 1, len(weight)
    bias = np.zeros(up(len(packed.order), context.target.width), np.float32)
    bias[:rows] = operation.bias[packed.order[:rows]]
    tiles = min(slices, context.threads * context.tuning.tiles_per_thread)
    constants = (
        _parameters(operation, weight, images, slices), _cut(packed.first, tiles), packed.order, bias,
        _limits(operation), *packed.arrays,
    )  # fmt: skip
    return _stage(f"sparsify_matvec_{packed.form}", operation, constants, tiles, images, weight, seconds)


def _dense_stage(
    operation: Linear | Convolution, weight: Weight, images: int, seconds: float, context: Context
) -> Stage:
    tiles = -(-len(weight) // _DENSE_ROWS)
    rows = Written(weight.size, lambda home: weight.read(0, home)) if isinstance(weight, Unread) else np.asarray(weight)
    constants = (_parameters(operation, weight, images), rows, operation.bias, _limits(operation))
    return _stage("sparsify_matvec_dense", operation, constants, tiles, images, weight, seconds)


def _parameters(operation: Linear | Convolution, weight: Weight, images: int, slices: int = 0) -> np.ndarray:
    has = operation.epilogue.residual is not None
    return np.array([images, *weight.shape, 1 + has, has, slices], np.int64)


def _limits(operation: Linear | Convolution) -> np.ndarray:
    return np.array([operation.epilogue.low, operation.epilogue.high], np.float32)


def _stage(
    function: str, operation: Linear | Convolution, constants: tuple[np.ndarray | Written, ...], tiles: int,
    images: int, weight: Weight, seconds: float,
) -> Stage:  # fmt: skip
    epilogue: Epilogue = operation.epilogue
    residual = () if epilogue.residual is None else (epilogue.residual,)
    return Stage(
        kernel="matvec",
        function=function,
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=tiles,
        constants=constants,
        flops=2.0 * operation.nonzeros * images,
        density=operation.nonzeros / weight.size,
        seconds=seconds,
        why=f"{images} vectors, {function.split('_')[-1]}",
    )


def emit(module: Module) -> None:
    """void sparsify_matvec_{dense,gathered,permuted}(buffers, constants, tile)."""
    _emit_sparse(module, "gathered")
    if module.target.level == "avx512":
        _emit_sparse(module, "permuted")
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


def _emit_sparse(module: Module, form: str) -> None:
    body = Body(module, f"sparsify_matvec_{form}")
    b, width, kind = body.builder, module.width, module.vector
    buffers, constants, tile = body.arguments
    together = _TOGETHER if form == "permuted" else 1
    parameters, bounds, order, bias, limits = (body.pointer(constants, i) for i in range(5))
    arrays = [body.pointer(constants, i) for i in range(5, 11 if form == "permuted" else 8)]
    images, rows, length, output, has, slices = body.numbers(parameters, 6)
    lanes = b.alloca(kind)
    begin = body.load(bounds, tile, I64)
    end = body.load(bounds, b.add(tile, body.const(1)), I64)
    with body.loop(0, images) as image:
        x = body.at(body.pointer(buffers, 0), b.mul(image.index, length), F32)
        y = body.at(body.pointer(buffers, output), b.mul(image.index, rows), F32)
        residual = body.at(body.pointer(buffers, has), b.mul(image.index, rows), F32)
        with body.loop(begin, end) as turn:
            pieces = [b.add(turn.index, b.mul(slices, body.const(i))) for i in range(together)]
            initial = [b.load(body.at(bias, piece, kind), typ=kind, align=4) for piece in pieces]
            if form == "permuted":
                totals = segments.add_products(body, arrays, [x], length, pieces, initial)
            else:
                totals = [sell.add_products(body, arrays, x, pieces[0], initial[0])]
            for piece, total in zip(pieces, totals, strict=True):
                b.store(total, lanes)
                base = b.mul(piece, body.const(width))
                with body.loop(0, body.smaller(b.sub(rows, base), body.const(width))) as lane:
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
