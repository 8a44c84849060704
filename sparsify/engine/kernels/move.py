"""Operations that only move elements, as copies by strides, straight between layouts that strides describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I8, I64, Body, Module
from sparsify.engine.program import Operation, Rearrange, Shape
from sparsify.engine.stage import Context, Layout, Stage
from sparsify.engine.transpose import square
from sparsify.engine.views import View, in_buffer, merged, moved

AXES = 6  # outside of the two innermost
PART = 14 + 3 * AXES  # numbers of a part
RUN = 4096  # elements in a row of a copy that has no rows of its own
TILE = 16384  # elements, about
RATE = 2e9  # elements a second and thread
KINDS = {1: I8, 4: F32, 8: I64}
PLAIN, TURNED, ANY = range(3)  # rows to rows; columns to rows; one by one


@dataclass(frozen=True)
class _Part:
    """One copy: axes are (size, stride in the source, stride in the target)."""

    buffer: int  # -1: the constant
    source: int  # offsets
    target: int
    axes: list[tuple[int, ...]]


def propose(operation: Operation, context: Context) -> Stage | None:
    """Any Rearrange of elements of 1, 4 or 8 bytes."""
    if not isinstance(operation, Rearrange):
        return None
    output = context.values[operation.output]
    size = np.dtype(output.dtype).itemsize
    if size not in KINDS or output.dtype == "object" or -1 in output.shape:
        return None
    in_c_order: Mapping[str, Layout] = dict.fromkeys(context.values)
    for layouts in (context.layouts, in_c_order):
        parts = _parts(operation, context, layouts)
        records = [_record(part) for part in parts] if parts is not None else [None]
        if None not in records:
            return _stage(operation, context, layouts, size, [r for r in records if r is not None])
    return None


def _stage(
    operation: Rearrange, context: Context, layouts: Mapping[str, Layout], size: int, records: list[list[int]]
) -> Stage:
    output = context.values[operation.output]
    names = dict.fromkeys((*operation.inputs, operation.output))
    elements = math.prod(output.shape)
    given = operation.arguments.get("value", 0)
    fill = np.full(RUN, given, output.dtype).view(np.uint8)
    return Stage(
        kernel="move",
        function=f"sparsify_move_{size}",
        reads=operation.inputs,
        writes=(operation.output,),
        tiles=max((record[3] for record in records), default=0) if elements else 0,
        constants=(np.array(len(operation.inputs)), np.array(records, np.int64), fill),
        layouts={name: layouts[name] for name in names if layouts[name] is not None},
        steps=max(1, len(records)),
        seconds=elements / RATE / context.threads,
        why=operation.kind,
    )


def _parts(operation: Rearrange, context: Context, layouts: Mapping[str, Layout]) -> list[_Part] | None:
    """The copies that make up the operation; None where strides do not describe one of its values."""
    shapes = [context.values[name].shape for name in operation.inputs]
    target = in_buffer(context.values[operation.output].shape, layouts[operation.output])
    sources = [in_buffer(shape, layouts[name]) for shape, name in zip(shapes, operation.inputs, strict=True)]
    if target is None or None in sources or (operation.kind == "pad" and layouts[operation.output] is not None):
        return None
    views = [source for source in sources if source is not None]
    given = operation.arguments
    if operation.kind == "concat":
        start, parts = 0, []
        for number, view in enumerate(views):
            place = target.offset + start * target.strides[given["axis"]]
            parts += _copies(number, view, View(place, view.shape, target.strides))
            start += view.shape[given["axis"]]
        return parts
    if operation.kind == "pad":
        place = target.offset + sum(n * stride for n, stride in zip(given["before"], target.strides, strict=True))
        return [*_filled(math.prod(target.shape)), *_copies(0, views[0], View(place, shapes[0], target.strides))]
    steps = given["steps"] if operation.kind == "view" else ((operation.kind, given, target.shape),)
    return _moved(views[0], target, list(steps))


def _moved(source: View, target: View, steps: list[tuple[str, Mapping[str, Any], Shape]]) -> list[_Part] | None:
    """Operations of one operand, one after the other. A reshape at the end may be undone on the target instead."""
    while True:
        found = moved(source, "view", {"steps": steps}, target.shape)
        if found is not None:
            return _copies(0, found, target)
        if not steps or steps[-1][0] != "reshape":
            return None
        steps.pop()
        before = moved(target, "reshape", {}, steps[-1][2] if steps else source.shape)
        if before is None:
            return None
        target = before


def _filled(size: int) -> list[_Part]:
    """All of a target in C order, from the constant again and again."""
    rows, rest = divmod(size, RUN)
    parts = [_Part(-1, 0, 0, [(rows, 0, RUN), (RUN, 1, 1)])] if rows else []
    return parts + ([_Part(-1, 0, rows * RUN, [(rest, 1, 1)])] if rest else [])


def _copies(buffer: int, source: View, target: View) -> list[_Part]:
    """One view to another of the same shape; long runs without rows in rows and a rest."""
    axes = merged(source.shape, source.strides, target.strides) or [(1, 1, 1)]
    if 0 in source.shape:
        return []
    size, step, out = axes[-1]
    if len(axes) > 1 or size <= RUN:
        return [_Part(buffer, source.offset, target.offset, axes)]
    rows, rest = divmod(size, RUN)
    parts = [_Part(buffer, source.offset, target.offset, [(rows, RUN * step, RUN * out), (RUN, step, out)])]
    if rest:
        done = rows * RUN
        parts.append(_Part(buffer, source.offset + done * step, target.offset + done * out, [(rest, step, out)]))
    return parts


def _record(part: _Part) -> list[int] | None:
    """A part in numbers; None where it has too many axes."""
    axes = list(part.axes)
    column = next((axis for axis in reversed(axes) if axis[2] == 1), axes[-1])
    axes.remove(column)
    row = next((axis for axis in axes if axis[1] == 1), None) if column[1] != 1 else None
    mode = PLAIN if column[1] == column[2] == 1 else TURNED if row is not None and column[2] == 1 else ANY
    row = row or (axes[-1] if axes else (1, 0, 0))
    if row in axes:
        axes.remove(row)
    if len(axes) > AXES:
        return None
    outer = math.prod(axis[0] for axis in axes)
    together = max(1, min(row[0], -(-TILE // max(1, column[0]))))
    if mode == TURNED:
        together = -(-together // 16) * 16
    blocks = -(-row[0] // together)
    head = [part.buffer, part.source, part.target, outer * blocks, blocks, row[0], together, column[0]]
    numbers = [*head, row[1], row[2], column[1], column[2], mode, len(axes)]
    return numbers + [n for axis in axes for n in axis] + [0] * (3 * (AXES - len(axes)))


def emit(module: Module) -> None:
    """void sparsify_move_SIZE(buffers, constants, tile): one tile of the part that the step's number names."""
    for size, kind in KINDS.items():
        body = Body(module, f"sparsify_move_{size}")
        b = body.builder
        buffers, constants, tile = body.arguments
        # Behind the inputs lie the output, scratch memory and the step's number.
        (inputs,) = body.numbers(body.pointer(constants, 0), 1)
        number = body.load(buffers, b.add(inputs, body.const(2)), I64, align=8)
        part = body.at(body.pointer(constants, 1), b.mul(number, body.const(PART)), I64)
        buffer, source, target, tiles = body.numbers(part, 4)
        with b.if_then(b.icmp_signed("<", tile, tiles)):
            is_input = b.icmp_signed(">=", buffer, body.const(0))
            from_input = body.pointer(buffers, b.select(is_input, buffer, body.const(0)))
            read = b.select(is_input, from_input, body.pointer(constants, 2))
            places = body.at(read, source, kind), body.at(body.pointer(buffers, inputs), target, kind)
            _tile(body, kind, part, tile, places)
        body.done()


def _tile(body: Body, kind: ir.Type, part: ir.Value, tile: ir.Value, places: tuple[ir.Value, ir.Value]) -> None:
    """Some rows of one place of the outer axes."""
    b = body.builder
    blocks, rows, together, columns, in_row, out_row, in_column, out_column, mode, axes = (
        body.load(part, 4 + i, I64, align=8) for i in range(10)
    )
    first = b.mul(b.urem(tile, blocks), together)
    last = body.smaller(b.add(first, together), rows)
    offsets = [b.mul(first, in_row), b.mul(first, out_row)]
    with body.loop(0, axes, 1, [b.udiv(tile, blocks), *offsets]) as turn:
        axis = b.sub(b.sub(axes, body.const(1)), turn.index)
        size, *strides = body.numbers(body.at(part, b.add(b.mul(axis, body.const(3)), body.const(14)), I64), 3)
        index, rest = b.urem(turn.state[0], size), b.udiv(turn.state[0], size)
        sums = [b.add(old, b.mul(index, stride)) for old, stride in zip(turn.state[1:], strides, strict=True)]
        turn.following = [rest, *sums]
    source, target = (body.at(place, offset, kind) for place, offset in zip(places, turn.state[1:], strict=True))
    count = b.sub(last, first)
    switch_to = [b.append_basic_block(name) for name in ("plain", "turned", "any")]
    after = b.append_basic_block("after")
    switch = b.switch(mode, switch_to[ANY])
    for number in (PLAIN, TURNED):
        switch.add_case(ir.Constant(I64, number), switch_to[number])
    b.position_at_end(switch_to[PLAIN])
    with body.loop(0, count) as row:
        _run(body, kind, body.at(source, b.mul(row.index, in_row), kind),
             body.at(target, b.mul(row.index, out_row), kind), columns)  # fmt: skip
    b.branch(after)
    b.position_at_end(switch_to[TURNED])
    if kind == F32:
        _turn(body, source, target, count, columns, in_column, out_row)
        b.branch(after)
    else:
        b.branch(switch_to[ANY])
    b.position_at_end(switch_to[ANY])
    with body.loop(0, count) as row, body.loop(0, columns) as column:
        here = b.add(b.mul(row.index, in_row), b.mul(column.index, in_column))
        there = b.add(b.mul(row.index, out_row), b.mul(column.index, out_column))
        body.store(body.load(source, here, kind, align=1), target, there, align=1)
    b.branch(after)
    b.position_at_end(after)


def _run(body: Body, kind: ir.Type, source: ir.Value, target: ir.Value, count: ir.Value) -> None:
    """Neighbours to neighbours."""
    b, width = body.builder, body.module.width
    whole = b.and_(count, body.const(-width))
    with body.loop(0, whole, width) as i:
        vector = b.load(body.at(source, i.index, kind), typ=ir.VectorType(kind, width), align=1)
        b.store(vector, body.at(target, i.index, kind), align=1)
    with body.loop(whole, count) as i:
        body.store(body.load(source, i.index, kind, align=1), target, i.index, align=1)


def _turn(
    body: Body, source: ir.Value, target: ir.Value, rows: ir.Value, columns: ir.Value, step: ir.Value, out: ir.Value
) -> None:
    """target[row * out + column] = source[row + column * step], in squares of vectors."""
    b, width = body.builder, body.module.width
    whole_rows, whole_columns = (b.and_(n, body.const(-width)) for n in (rows, columns))
    with body.loop(0, whole_columns, width) as column, body.loop(0, whole_rows, width) as row:
        here = body.at(source, b.add(row.index, b.mul(column.index, step)), F32)
        there = body.at(target, b.add(column.index, b.mul(row.index, out)), F32)
        lines = [b.load(body.at(here, b.mul(step, body.const(k)), F32), typ=body.module.vector, align=4)
                 for k in range(width)]  # fmt: skip
        for k, line in enumerate(square(body, lines)):
            b.store(line, body.at(there, b.mul(out, body.const(k)), F32), align=4)
    zero = body.const(0)
    for edge in ((whole_rows, rows, zero, columns), (zero, whole_rows, whole_columns, columns)):
        with body.loop(edge[2], edge[3]) as column, body.loop(edge[0], edge[1]) as row:
            value = body.load(source, b.add(row.index, b.mul(column.index, step)), F32)
            body.store(value, target, b.add(column.index, b.mul(row.index, out)))
