"""Copying planes row by row, on the way split by phase: elements that a step of 1, 2 or more columns apart go
to a plane of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body, Module

STEPS = (1, 2, 0)  # columns from one element of a phase to the next; 0: any number, one element at a time
_TILE = 8192  # elements that make a tile worth its claim
_BANDS, _LEAST = 4, 3  # bands, and rows of each: so a thread copies more or less what it has written and will read


def function(prefix: str, step: int) -> str:
    """The function that copies with a step of so many columns."""
    return f"{prefix}_{step if step in STEPS else 0}"


def fills(step: int) -> bool:
    """Whether that function also writes what lies between the rows of the target."""
    return step in STEPS[:-1]


def cut(
    shape: tuple[int, int, int, int], source: Sequence[int], target: Sequence[int], phases: Sequence[int], apart: int
) -> tuple[np.ndarray, int]:
    """The parameters of the functions that `emit` adds, and the tiles.

    source, target: floats from one channel and image to the next, of the target also from one row to the next, and
    before the first one. phases: vertical and horizontal ones, and how many of both are kept; `apart` floats from one
    to the next.
    """
    n, c, h, w = shape
    rows = -(-h // phases[0])  # of a phase
    bands = max(1, min(rows // _LEAST, _BANDS, n * c * h * w // _TILE))
    band = -(-rows // bands)
    bands = -(-rows // band)
    together = max(1, min(c, _TILE // (n * band * phases[0] * w)))
    groups = -(-c // together)
    numbers = [c, h, w, n, together, groups, rows, band, *source, *target, *phases, apart]
    return np.array(numbers, np.int64), bands * groups


def emit(module: Module, prefix: str) -> None:
    """Add `void <prefix>_<step>(buffers, constants, tile)`: some channels of a band of rows. The constants are those
    of `cut`, what lies between rows, and where each row of the source begins: int64 [h]."""
    for step in STEPS:
        body = Body(module, function(prefix, step))
        b = body.builder
        buffers, constants, tile = body.arguments
        fill = body.splat(body.load(body.pointer(constants, 1), 0, F32))
        begins = body.pointer(constants, 2)
        numbers = body.numbers(body.pointer(constants, 0), 19)
        channels, height, width, images, together, groups, rows, band = numbers[:8]
        s_channel, s_plane, t_channel, t_plane, t_pitch, t_lead = numbers[8:14]
        down, right, kept_down, kept_right, phase = numbers[14:]
        first = b.mul(b.urem(tile, groups), together)
        last = body.smaller(channels, b.add(first, together))
        top = b.mul(b.udiv(tile, groups), band)
        bottom = body.smaller(rows, b.add(top, band))
        row = _Row(width, t_pitch, right, kept_right, phase, fill)
        with body.loop(0, images) as image:
            for copy in _COLUMNS[step](body, row):
                with body.loop(first, last) as channel:
                    sides = []
                    for i, (plane, each) in enumerate(((s_plane, s_channel), (t_plane, t_channel))):
                        start = b.add(b.mul(image.index, plane), b.mul(channel.index, each))
                        sides.append(body.at(body.pointer(buffers, i), start, F32))
                    with body.loop(0, kept_down) as vertical:
                        ending = b.sdiv(b.sub(b.add(height, b.sub(down, body.const(1))), vertical.index), down)
                        below = b.mul(b.mul(vertical.index, kept_right), phase)
                        with body.loop(top, body.smaller(bottom, ending)) as line:
                            above = b.add(b.mul(line.index, down), vertical.index)
                            copy(
                                body.at(sides[0], body.load(begins, above, I64, align=8), F32),
                                body.at(sides[1], b.add(b.mul(line.index, t_pitch), b.add(below, t_lead)), F32),
                            )
        body.done()


@dataclass(frozen=True)
class _Row:
    """What a row's copy reads, and from one row of the target to the next."""

    width: ir.Value
    pitch: ir.Value
    step: ir.Value
    kept: ir.Value
    phase: ir.Value
    fill: ir.Value  # a vector of what lies between rows


# The copy of some columns, from the beginning of a row to that of another. Whatever is the same in all rows comes
# before them.
_Copy = Callable[[ir.Value, ir.Value], None]


def _plain(body: Body, row: _Row) -> Iterator[_Copy]:
    b = body.builder
    with body.loop(0, row.pitch, body.module.width) as turn:
        place = turn.index
        there, whole = (body.first_lanes(b.sub(length, place)) for length in (row.width, row.pitch))

        def copy(source: ir.Value, target: ir.Value) -> None:
            found = body.masked_load(body.at(source, place, F32), there)
            body.masked_store(b.select(there, found, row.fill), body.at(target, place, F32), whole)

        yield copy


def _every_other(body: Body, row: _Row) -> Iterator[_Copy]:
    """Even columns to one phase and, where it is kept, odd ones to the next."""
    b, lanes = body.builder, body.module.width
    kind = ir.VectorType(I32, lanes)
    orders = [ir.Constant(kind, [2 * i + first for i in range(lanes)]) for first in (0, 1)]
    both = b.icmp_signed("==", row.kept, body.const(2))
    with body.loop(0, row.pitch, lanes) as turn:
        place, start = turn.index, b.mul(turn.index, body.const(2))
        rest = b.sub(row.width, start)
        loaded = [body.first_lanes(b.sub(rest, body.const(i))) for i in (0, lanes)]
        there = [body.first_lanes(b.ashr(b.add(rest, body.const(i)), body.const(1))) for i in (1, 0)]
        whole = body.first_lanes(b.sub(row.pitch, place))

        def copy(source: ir.Value, target: ir.Value) -> None:
            pair = [
                body.masked_load(body.at(source, b.add(start, body.const(i)), F32), mask)
                for i, mask in zip((0, lanes), loaded, strict=True)
            ]

            def store(odd: int, target: ir.Value) -> None:
                found = b.select(there[odd], b.shuffle_vector(*pair, orders[odd]), row.fill)
                body.masked_store(found, body.at(target, place, F32), whole)

            store(0, target)
            with b.if_then(both):
                store(1, body.at(target, row.phase, F32))

        yield copy


def _one_by_one(body: Body, row: _Row) -> Iterator[_Copy]:
    b = body.builder

    def copy(source: ir.Value, target: ir.Value) -> None:
        with body.loop(0, row.kept) as horizontal:
            count = b.udiv(b.add(b.sub(row.width, horizontal.index), b.sub(row.step, body.const(1))), row.step)
            here = body.at(source, horizontal.index, F32)
            there = body.at(target, b.mul(horizontal.index, row.phase), F32)
            with body.loop(0, count) as i:
                body.store(body.load(here, b.mul(i.index, row.step), F32), there, i.index)

    yield copy


_COLUMNS = {1: _plain, 2: _every_other, 0: _one_by_one}
