"""Copying planes row by row, on the way split by phase: elements that a step of 1, 2 or more columns apart go
to a plane of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, Body, Module
from sparsify.engine.layout import LINE

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

    source, target: floats from one channel, image and row to the next, and before the first element. phases:
    vertical and horizontal ones, and how many of both are kept; `apart` floats from one to the next.
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
    """Add `void <prefix>_<step>(buffers, constants, tile)`: some channels of a band of rows."""
    for step in STEPS:
        body = Body(module, function(prefix, step))
        b = body.builder
        buffers, constants, tile = body.arguments
        fill = body.splat(body.load(body.pointer(constants, 1), 0, F32))
        numbers = body.numbers(body.pointer(constants, 0), 21)
        channels, height, width, images, together, groups, rows, band = numbers[:8]
        s_channel, s_plane, s_pitch, s_lead, t_channel, t_plane, t_pitch, t_lead = numbers[8:16]
        down, right, kept_down, kept_right, phase = numbers[16:]
        first = b.mul(b.urem(tile, groups), together)
        last = body.smaller(channels, b.add(first, together))
        top = b.mul(b.udiv(tile, groups), band)
        bottom = body.smaller(rows, b.add(top, band))
        with body.loop(0, images) as image, body.loop(first, last) as channel:
            sides = []
            for i, (lead, plane, by_channel) in enumerate(((s_lead, s_plane, s_channel), (t_lead, t_plane, t_channel))):
                place = b.add(lead, b.add(b.mul(image.index, plane), b.mul(channel.index, by_channel)))
                sides.append(body.at(body.pointer(buffers, i), place, F32))
            above, below = (b.mul(b.mul(row, down), s_pitch) for row in (top, bottom))
            _fetch_next(body, sides[0], s_channel, (above, below))
            with body.loop(0, b.mul(kept_down, kept_right)) as number:
                there = body.at(sides[1], b.mul(number.index, phase), F32)
                _fetch_next(body, there, t_channel, (b.mul(top, t_pitch), b.mul(bottom, t_pitch)), write=True)
            with body.loop(top, bottom) as row, body.loop(0, kept_down) as vertical:
                above = b.add(b.mul(row.index, down), vertical.index)
                with b.if_then(b.icmp_signed("<", above, height)):
                    here = body.at(sides[0], b.mul(above, s_pitch), F32)
                    below = b.add(b.mul(row.index, t_pitch), b.mul(b.mul(vertical.index, kept_right), phase))
                    there = body.at(sides[1], below, F32)
                    _ROW[step](body, here, there, _Row(width, t_pitch, right, kept_right, phase, fill))
        body.done()


def _fetch_next(
    body: Body, channel: ir.Value, apart: ir.Value, edges: tuple[ir.Value, ir.Value], write: bool = False
) -> None:
    """Bring near what the next channel's copy will read or write: its runs are too short to be foreseen."""
    following = body.at(channel, apart, F32)
    with body.loop(*edges, LINE) as line:
        body.prefetch(body.at(following, line.index, F32), 2, write)


def _vectors(body: Body, count: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Where the vectors of `count` elements begin, and how many elements are left there."""
    with body.loop(0, count, body.module.width) as turn:
        yield turn.index, body.builder.sub(count, turn.index)


@dataclass(frozen=True)
class _Row:
    """What a row's copy reads, and from one row of the target to the next."""

    width: ir.Value
    pitch: ir.Value
    step: ir.Value
    kept: ir.Value
    phase: ir.Value
    fill: ir.Value  # a vector of what lies between rows


def _plain(body: Body, source: ir.Value, target: ir.Value, row: _Row) -> None:
    for place, left in _vectors(body, row.pitch):
        there = body.first_lanes(body.builder.sub(row.width, place))
        found = body.masked_load(body.at(source, place, F32), there)
        _store(body, found, there, body.at(target, place, F32), left, row.fill)


def _store(body: Body, found: ir.Value, there: ir.Value, target: ir.Value, left: ir.Value, fill: ir.Value) -> None:
    """The lanes that are there, and what lies between rows in those after them."""
    body.masked_store(body.builder.select(there, found, fill), target, body.first_lanes(left))


def _every_other(body: Body, source: ir.Value, target: ir.Value, row: _Row) -> None:
    """Even columns to one phase and, where it is kept, odd ones to the next."""
    b, lanes = body.builder, body.module.width
    kind = ir.VectorType(I32, lanes)
    even, odd = (ir.Constant(kind, [2 * i + first for i in range(lanes)]) for first in (0, 1))
    both = b.icmp_signed("==", row.kept, body.const(2))
    for place, left in _vectors(body, row.pitch):
        start = b.mul(place, body.const(2))
        rest = b.sub(row.width, start)
        pair = [
            body.masked_load(body.at(source, b.add(start, body.const(i)), F32),
                             body.first_lanes(b.sub(rest, body.const(i))))
            for i in (0, lanes)
        ]  # fmt: skip
        evens = body.first_lanes(b.ashr(b.add(rest, body.const(1)), body.const(1)))
        _store(body, b.shuffle_vector(*pair, even), evens, body.at(target, place, F32), left, row.fill)
        with b.if_then(both):
            further = body.at(target, b.add(row.phase, place), F32)
            odds = body.first_lanes(b.ashr(rest, body.const(1)))
            _store(body, b.shuffle_vector(*pair, odd), odds, further, left, row.fill)


def _one_by_one(body: Body, source: ir.Value, target: ir.Value, row: _Row) -> None:
    b = body.builder
    with body.loop(0, row.kept) as horizontal:
        count = b.udiv(b.add(b.sub(row.width, horizontal.index), b.sub(row.step, body.const(1))), row.step)
        here = body.at(source, horizontal.index, F32)
        there = body.at(target, b.mul(horizontal.index, row.phase), F32)
        with body.loop(0, count) as i:
            body.store(body.load(here, b.mul(i.index, row.step), F32), there, i.index)


_ROW = {1: _plain, 2: _every_other, 0: _one_by_one}
