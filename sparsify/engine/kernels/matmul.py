"""Products of two computed matrices, as in attention: a tile of the result in registers, operands read in place."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.program import MatMul, Operation, Shape
from sparsify.engine.stage import Context, Stage
from sparsify.engine.views import contiguous, merged

AXES = 4  # of the batch
TILE = 1 << 17  # multiplications, about
RATE = 20e9  # multiplications a second and thread


def registers(width: int) -> tuple[int, int]:
    """Rows and vectors of columns whose sums stay in registers."""
    return (6, 4) if width == 16 else (4, 2)


def propose(operation: Operation, context: Context) -> Stage | None:
    """Any MatMul of float32 in C order."""
    if not isinstance(operation, MatMul):
        return None
    left, right, output = (context.values[name] for name in (operation.left, operation.right, operation.output))
    if left.dtype != "float32" or right.dtype != "float32" or -1 in (*left.shape, *right.shape):
        return None
    batch = output.shape[:-2]
    axes = merged(batch, *(_strides(value.shape, batch) for value in (left, right)))
    if len(axes) > AXES:
        return None
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    tall = registers(context.target.width)[0]
    together = max(1, TILE // max(1, inner * columns * tall)) * tall
    blocks = -(-rows // together)
    count = math.prod(batch)
    flat = [number for axis in axes for number in axis] + [0] * 3 * (AXES - len(axes))
    numbers = np.array([rows, inner, columns, together, blocks, len(axes), *flat], np.int64)
    work = count * rows * inner * columns
    names = (operation.left, operation.right)
    return Stage(
        kernel="matmul",
        function="sparsify_matmul",
        reads=names,
        writes=(operation.output,),
        tiles=count * blocks if rows * columns else 0,
        constants=(numbers,),
        flops=2.0 * work,
        seconds=work / RATE / context.threads,
        why=f"{count} products of {rows} x {inner} x {columns}",
    )


def _strides(shape: Shape, batch: Shape) -> tuple[int, ...]:
    """Elements from one matrix to the next along the batch's axes, to which `shape` is broadcast."""
    own = (1,) * (len(batch) + 2 - len(shape)) + shape
    strides = contiguous(own).strides[:-2]
    return tuple(0 if size == 1 else stride for size, stride in zip(own[:-2], strides, strict=True))


def emit(module: Module) -> None:
    """void sparsify_matmul(buffers, constants, tile): some rows of one product."""
    body = Body(module, "sparsify_matmul")
    b, width = body.builder, module.width
    buffers, constants, tile = body.arguments
    numbers = body.pointer(constants, 0)
    rows, inner, columns, together, blocks, axes = body.numbers(numbers, 6)
    batch = b.udiv(tile, blocks)
    with body.loop(0, axes, 1, [batch, body.const(0), body.const(0)]) as turn:
        axis = b.sub(b.sub(axes, body.const(1)), turn.index)
        size, *strides = body.numbers(
            body.at(numbers, b.add(b.mul(axis, body.const(3)), body.const(6)), ir.IntType(64)), 3
        )
        place = b.urem(turn.state[0], size)
        sums = [b.add(old, b.mul(place, stride)) for old, stride in zip(turn.state[1:], strides, strict=True)]
        turn.following = [b.udiv(turn.state[0], size), *sums]
    left, right = (body.at(body.pointer(buffers, i), turn.state[1 + i], F32) for i in (0, 1))
    output = body.at(body.pointer(buffers, 2), b.mul(batch, b.mul(rows, columns)), F32)
    first = b.mul(b.urem(tile, blocks), together)
    last = body.smaller(b.add(first, together), rows)
    tall, wide = registers(width)
    whole_rows = b.add(first, b.mul(b.udiv(b.sub(last, first), body.const(tall)), body.const(tall)))
    panel = wide * width
    whole_columns = b.mul(b.udiv(columns, body.const(panel)), body.const(panel))
    for start, stop, step in ((body.const(0), whole_columns, wide), (whole_columns, columns, 1)):
        with body.loop(start, stop, step * width) as column:
            mask = None if step == wide else body.first_lanes(b.sub(columns, column.index))
            for begin, end, height in ((first, whole_rows, tall), (whole_rows, last, 1)):
                with body.loop(begin, end, height) as row:
                    here = body.at(left, b.mul(row.index, inner), F32)
                    there = body.at(output, b.add(b.mul(row.index, columns), column.index), F32)
                    _block(body, here, body.at(right, column.index, F32), there, (inner, columns), (height, step), mask)
    body.done()


def _block(
    body: Body,
    left: ir.Value,
    right: ir.Value,
    output: ir.Value,
    sizes: tuple[ir.Value, ir.Value],
    tile: tuple[int, int],
    mask: ir.Value | None,
) -> None:
    """A tile of (rows, vectors) of the result."""
    b, width = body.builder, body.module.width
    inner, columns = sizes
    height, vectors = tile
    lines = [body.at(left, b.mul(inner, body.const(row)), F32) for row in range(height)]
    with body.loop(0, inner, 1, [body.zeros()] * (height * vectors)) as k:
        line = body.at(right, b.mul(k.index, columns), F32)
        places = [body.at(line, v * width, F32) for v in range(vectors)]
        if mask is None:
            loaded = [b.load(place, typ=body.module.vector, align=4) for place in places]
        else:
            loaded = [body.masked_load(place, mask) for place in places]
        weights = [body.splat(body.load(line, k.index, F32)) for line in lines]
        k.following = [
            body.fma(weights[row], loaded[v], k.state[row * vectors + v])
            for row in range(height)
            for v in range(vectors)
        ]
    for row in range(height):
        for v in range(vectors):
            place = body.at(body.at(output, b.mul(columns, body.const(row)), F32), v * width, F32)
            total = k.state[row * vectors + v]
            if mask is None:
                b.store(total, place, align=4)
            else:
                body.masked_store(total, place, mask)
