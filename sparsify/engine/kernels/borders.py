"""Writing what lies around the rows of planes, where their memory held something else before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsify.engine.ir import F32, I64, Body, Module
from sparsify.engine.layout import Planes
from sparsify.engine.program import Operation
from sparsify.engine.stage import Context, Stage

_TILES = 8


def propose(operation: Operation, context: Context) -> Stage | None:
    """None: borders are put in by the compiler, not by a program's operations."""
    return None


def border_stage(value: str, layout: Planes, filled: bool = False) -> Stage:
    """The stage that writes all of a buffer but its elements and, where that is `filled` otherwise, what lies between
    the rows of an image."""
    pieces, count = gaps(layout, filled), layout.channels if layout.lanes == 1 else 1
    numbers = np.array([len(pieces), -(-len(pieces) // _TILES), count, layout.channel], np.int64)
    constants = (numbers, pieces, np.array([layout.fill], np.float32))
    tiles = min(_TILES, len(pieces))
    return Stage("borders", "sparsify_borders", (), (value,), tiles, constants, {value: layout}, why="memory shared")


def gaps(layout: Planes, filled: bool = False) -> np.ndarray:
    """Where no element is: int64 [pieces, 2], first float and length. Of one channel where positions are in the
    lanes, else of the whole buffer. `filled`: without what lies between the rows of an image in a plane."""
    step = 1 if layout.lanes == 1 else layout.step
    plain = replace(layout, images=layout.blocks, channels=1, lanes=1)
    there = np.zeros(plain.size if layout.lanes == 1 else layout.size // step, bool)
    places = plain.index()
    there[places] = True
    if filled:
        for row, column in np.ndindex(layout.split):
            for inside in places[:, 0, row :: layout.split[0], column :: layout.split[1]]:
                if inside.size:
                    there[inside[0, 0] : inside[-1, -1]] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[True], there, [True]]).astype(np.int8)))
    first, last = edges[::2], edges[1::2]
    return np.stack([first, last - first], axis=1).astype(np.int64) * step


def emit(module: Module) -> None:
    """void sparsify_borders(buffers, constants, tile): some of the pieces, of all channels."""
    body = Body(module, "sparsify_borders")
    b = body.builder
    buffers, constants, tile = body.arguments
    pieces, each, channels, stride = body.numbers(body.pointer(constants, 0), 4)
    table, value = body.pointer(constants, 1), body.load(body.pointer(constants, 2), 0, F32)
    first = b.mul(tile, each)
    with (
        body.loop(0, channels) as channel,
        body.loop(first, body.smaller(b.add(first, each), pieces)) as piece,
    ):
        entry = body.at(table, b.mul(piece.index, body.const(2)), I64)
        start, count = body.numbers(entry, 2)
        place = body.at(body.pointer(buffers, 0), b.add(b.mul(channel.index, stride), start), F32)
        whole = b.and_(count, body.const(-module.width))
        with body.loop(0, whole, module.width) as at:
            b.store(body.splat(value), body.at(place, at.index, F32), align=4)
        with body.loop(whole, count) as at:
            body.store(value, place, at.index)
    body.done()
