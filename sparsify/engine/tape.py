"""The native function that runs chains of elementwise functions: a loop over pieces, and in it over a tape."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I8, I32, I64, POINTER, Body, Module
from sparsify.engine.vector_functions import VECTOR, Apply, as_truth

FUNCTION = "sparsify_elementwise"
PIECE = 1024  # elements
SLOTS = 12  # pieces for what later steps read
AXES = 6  # of the loop over pieces
OPERANDS = 20  # at most, the output included
HEAD = 8 + AXES  # numbers before the operands' records
RECORD = 4 + AXES  # numbers that describe an operand
STEP = 5  # numbers of a step: code, target, three operands
BYTES = {"float32": 4, "bool": 1, "int32": 4, "int64": 8}
KINDS = {"float32": F32, "bool": I8, "int32": I32, "int64": I64}


def _same(body: Body, x: ir.Value) -> ir.Value:
    return x


# A step's function, with the dtypes that it reads and writes; "spread" reads one number for all elements.
CODES = {
    "spread": (_same, "float32", "float32"),
    "truth": (as_truth, "float32", "float32"),
    "to_bool": (_same, "float32", "bool"),
    **{f"from_{dtype}": (_same, dtype, "float32") for dtype in BYTES},
    **{name: (function, "float32", "float32") for name, function in VECTOR.items()},
}
NUMBER = {name: number for number, name in enumerate(CODES)}


@dataclass(frozen=True, eq=False)
class Operand:
    """What is read or written, and how it lies along the output's axes."""

    dtype: str
    strides: tuple[int, ...]  # elements; 0 where it is broadcast
    number: int  # among the buffers; with an array, among the constants
    array: np.ndarray | None = None


def parameters(
    axes: Sequence[tuple[int, ...]],
    operands: Sequence[Operand],
    steps: Sequence[Sequence[int]],
    work: tuple[int, int, int],
) -> list[int]:
    """The numbers that the native function reads.

    axes: size, then each operand's stride; the last is the one that pieces are cut from. work: pieces in all,
    in a tile, and along the last axis.
    """
    outer = axes[:-1]
    unused = [0] * (AXES - len(outer))
    numbers = [*work, axes[-1][0], len(outer), len(operands), len(steps), 0, *(axis[0] for axis in outer), *unused]
    for i, operand in enumerate(operands):
        size = BYTES[operand.dtype]
        numbers += [int(operand.array is not None), operand.number, axes[-1][1 + i] * size, 0]
        numbers += [*(axis[1 + i] * size for axis in outer), *unused]
    return numbers + [number for step in steps for number in step]


def emit(module: Module) -> None:
    """void sparsify_elementwise(buffers, constants, tile)"""
    body = Body(module, FUNCTION)
    b = body.builder
    buffers, constants, tile = body.arguments
    numbers = body.pointer(constants, 0)
    pieces, together, across, length, axes, operands, steps = body.numbers(numbers, 7)
    sizes, records = body.at(numbers, 8, I64), body.at(numbers, HEAD, I64)
    places, bases = body.room(POINTER, SLOTS + OPERANDS), body.room(POINTER, OPERANDS)
    slots = body.room(F32, SLOTS * PIECE)
    for slot in range(SLOTS):
        body.store(body.at(slots, slot * PIECE, F32), places, slot, align=8)
    with body.loop(0, operands) as operand:
        record = body.at(records, b.mul(operand.index, body.const(RECORD)), I64)
        is_constant, number = body.numbers(record, 2)
        table = b.select(b.icmp_signed("!=", is_constant, body.const(0)), constants, buffers)
        body.store(body.pointer(table, number), bases, operand.index, align=8)
    first = b.mul(tile, together)
    last = body.smaller(b.add(first, together), pieces)
    tape = body.at(records, b.mul(operands, body.const(RECORD)), I64)
    with body.loop(first, last) as piece:
        row, start = b.udiv(piece.index, across), b.mul(b.urem(piece.index, across), body.const(PIECE))
        count = body.smaller(b.sub(length, start), body.const(PIECE))
        with body.loop(0, operands) as operand:
            record = body.at(records, b.mul(operand.index, body.const(RECORD)), I64)
            offset = b.mul(start, body.load(record, 2, I64, align=8))
            with body.loop(0, axes, 1, [row, offset]) as turn:
                axis = b.sub(b.sub(axes, body.const(1)), turn.index)
                size = body.load(sizes, axis, I64, align=8)
                stride = body.load(record, b.add(axis, body.const(4)), I64, align=8)
                rest, offset = turn.state
                offset = b.add(offset, b.mul(b.urem(rest, size), stride))
                turn.following = [b.udiv(rest, size), offset]
            place = body.bytes(body.pointer(bases, operand.index), turn.state[1])
            body.store(place, places, b.add(operand.index, body.const(SLOTS)), align=8)
        with body.loop(0, steps) as step:
            _step(body, body.at(tape, b.mul(step.index, body.const(STEP)), I64), places, count)
    body.done()


def _step(body: Body, step: ir.Value, places: ir.Value, count: ir.Value) -> None:
    """Run one step of the tape on `count` elements."""
    b = body.builder
    code, *where = body.numbers(step, STEP)
    target, *operands = (body.pointer(places, place) for place in where)
    after = b.append_basic_block("after")
    switch = b.switch(code, after)
    for name, number in NUMBER.items():
        block = b.append_basic_block(name)
        switch.add_case(ir.Constant(I64, number), block)
        b.position_at_end(block)
        function, read, written = CODES[name]
        arity = len(inspect.signature(function).parameters) - 1
        if name == "spread":
            _spread(body, operands[0], target)
        else:
            _loop(body, function, operands[:arity], target, count, (read, written))
        b.branch(after)
    b.position_at_end(after)


def _spread(body: Body, source: ir.Value, target: ir.Value) -> None:
    vector = body.splat(body.load(source, 0, F32))
    with body.loop(0, PIECE, body.module.width) as i:
        body.store(vector, body.at(target, i.index, F32), 0, align=4)


def _loop(
    body: Body,
    function: Apply,
    operands: Sequence[ir.Value],
    target: ir.Value,
    count: ir.Value,
    dtypes: tuple[str, str],
) -> None:
    """target[i] = function(operands[i]...) in whole vectors, then a masked one, or one by one between dtypes."""
    b, width = body.builder, body.module.width
    read, written = (KINDS[dtype] for dtype in dtypes)
    whole = b.and_(count, body.const(-width))
    with body.loop(0, whole, width) as i:
        vectors = [b.load(body.at(p, i.index, read), typ=ir.VectorType(read, width), align=1) for p in operands]
        body.store(_apply(body, function, vectors, dtypes), body.at(target, i.index, written), 0, align=1)
    if dtypes != ("float32", "float32"):
        with body.loop(whole, count) as i:
            numbers = [body.load(p, i.index, read, align=1) for p in operands]
            body.store(_apply(body, function, numbers, dtypes), target, i.index, align=1)
        return
    with b.if_then(b.icmp_signed("<", whole, count)):
        mask = body.first_lanes(b.sub(count, whole))
        vectors = [body.masked_load(body.at(p, whole, F32), mask) for p in operands]
        body.masked_store(_apply(body, function, vectors, dtypes), body.at(target, whole, F32), mask)


def _apply(body: Body, function: Apply, operands: Sequence[ir.Value], dtypes: tuple[str, str]) -> ir.Value:
    b = body.builder
    kind = operands[0].type

    def like(element: ir.Type) -> ir.Type:
        return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element

    read, written = dtypes
    if read == "bool":
        operands = [b.uitofp(x, like(F32)) for x in operands]
    elif read != "float32":
        operands = [b.sitofp(x, like(F32)) for x in operands]
    result = function(body, *operands)
    return b.fptoui(result, like(I8)) if written == "bool" else result
