"""Rows of a table by their numbers: embeddings, and single elements of an axis."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import I8, I32, I64, Body, Module
from sparsify.engine.program import Gather, Operation, Shape
from sparsify.engine.stage import Context, Stage

TILE = 1 << 16  # bytes, about
RATE = 6e9  # bytes a second and thread
INDICES = {"int32": I32, "int64": I64}


def propose(operation: Operation, context: Context) -> Stage | None:
    """Any Gather by int32 or int64. Indices out of range end the run in an error."""
    if not isinstance(operation, Gather):
        return None
    data, indices, output = operation.data, operation.indices, context.values[operation.output]
    table = context.values[data].shape if isinstance(data, str) else data.shape
    kind = context.values[indices].dtype if isinstance(indices, str) else str(indices.dtype)
    if kind not in INDICES or -1 in (*table, *output.shape) or output.dtype == "object":
        return None
    count = math.prod(context.values[indices].shape if isinstance(indices, str) else indices.shape)
    return _stage(operation, context, table, kind, count)


def _stage(operation: Gather, context: Context, table: Shape, kind: str, count: int) -> Stage:
    axis = operation.axis % len(table)
    outer = math.prod(table[:axis])
    run = math.prod(table[axis + 1 :]) * np.dtype(context.values[operation.output].dtype).itemsize
    given = [operation.data, operation.indices]
    names = tuple(entry for entry in given if isinstance(entry, str))
    arrays = [np.ascontiguousarray(entry).reshape(-1) for entry in given if not isinstance(entry, str)]
    # Where each of the two is: among the buffers, or from -1 down among the constants.
    following = iter((-1, -2))
    places = [names.index(entry) if isinstance(entry, str) else next(following) for entry in given]
    together = max(1, TILE // max(1, run))
    numbers = [*places, len(names), outer * count, count, table[axis], run, together]
    return Stage(
        kernel="gather",
        function=f"sparsify_gather_{kind}",
        reads=names,
        writes=(operation.output,),
        tiles=-(-outer * count // together),
        constants=(np.array(numbers, np.int64), *arrays),
        scratch=8,
        failure=f"The Gather that makes '{operation.output}' met an index out of range: its table has {table[axis]} "
        f"entries. Check the model's inputs, token numbers above all.",
        seconds=outer * count * run / RATE / context.threads,
        why=f"{count} of {table[axis]} entries",
    )


def emit(module: Module) -> None:
    """void sparsify_gather_DTYPE(buffers, constants, tile): the runs of some indices."""
    for name, kind in INDICES.items():
        body = Body(module, f"sparsify_gather_{name}")
        b = body.builder
        buffers, constants, tile = body.arguments
        data, indices, output, runs, count, size, run, together = body.numbers(body.pointer(constants, 0), 8)
        table, numbers = _source(body, buffers, constants, data), _source(body, buffers, constants, indices)
        target, failed = body.pointer(buffers, output), body.pointer(buffers, b.add(output, body.const(1)))
        first = b.mul(tile, together)
        last = body.smaller(b.add(first, together), runs)
        with body.loop(first, last) as i:
            number = body.load(numbers, b.urem(i.index, count), kind)
            number = number if kind == I64 else b.sext(number, I64)
            number = b.select(b.icmp_signed("<", number, body.const(0)), b.add(number, size), number)
            inside = b.icmp_unsigned("<", number, size)
            with b.if_else(inside) as (there, beyond):
                with there:
                    place = b.add(b.mul(b.udiv(i.index, count), size), number)
                    source = body.bytes(table, b.mul(place, run))
                    _copy(body, source, body.bytes(target, b.mul(i.index, run)), run)
                with beyond:
                    body.store(body.const(1), failed, 0, align=8)
        body.done()


def _source(body: Body, buffers: ir.Value, constants: ir.Value, number: ir.Value) -> ir.Value:
    b = body.builder
    is_buffer = b.icmp_signed(">=", number, body.const(0))
    return body.pointer(b.select(is_buffer, buffers, constants), b.select(is_buffer, number, b.neg(number)))


def _copy(body: Body, source: ir.Value, target: ir.Value, count: ir.Value) -> None:
    b, width = body.builder, 4 * body.module.width
    whole = b.and_(count, body.const(-width))
    with body.loop(0, whole, width) as i:
        vector = b.load(body.bytes(source, i.index), typ=body.module.vector, align=1)
        b.store(vector, body.bytes(target, i.index), align=1)
    with body.loop(whole, count) as i:
        body.store(body.load(source, i.index, I8, align=1), target, i.index, align=1)
