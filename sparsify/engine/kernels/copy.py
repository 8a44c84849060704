"""Copies between layouts: into padded planes, planes split by phase, images side by side, and back."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from sparsify.engine import row_copy, transpose
from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.layout import Planes
from sparsify.engine.program import Operation, Shape
from sparsify.engine.sliding import as_images
from sparsify.engine.stage import Context, Layout, Stage
from sparsify.engine.transpose import Counts, Side, cut

ROWS, IMAGES, MATRIX = "sparsify_copy_rows", "sparsify_copy_images", "sparsify_transpose"


def propose(operation: Operation, context: Context) -> Stage | None:
    """None: copies are put in by the compiler, not by a program's operations."""
    return None


def copy_stage(value: str, shape: Shape, before: Layout, after: Layout) -> Stage:
    """The stage that copies `value` from one layout to the other. Not from planes that are split by phase."""
    images = as_images(shape)
    assert images is not None, f"{value} {shape} has no layout but C order"
    n, c, h, w = images
    if _is_transposed(before, after):
        numbers, tiles = _transposition(images, before, after)
        return Stage("copy", MATRIX, (value,), (value,), tiles, (numbers,), why="layout")
    source, target = before or _Contiguous(n, c, h, w), after or _Contiguous(n, c, h, w)
    if source.lanes == target.lanes == 1 and h * w > 1:
        assert source.phases == (1, 1)
        here, there = (source.channel, source.plane), (target.channel, target.plane, target.pitch, target.row(0))
        assert target.bands == 1
        rows = np.array([source.row(number) for number in range(h)], np.int64)
        numbers, tiles = row_copy.cut(images, here, there, (*target.phases, *target.split), target.phase)
        function = row_copy.function(ROWS, target.phases[1])
        fill = np.array([0.0 if after is None else after.fill], np.float32)
        fills = row_copy.fills(target.phases[1])
        return Stage("copy", function, (value,), (value,), tiles, (numbers, fill, rows), fills=fills, why="layout")
    tiles = c * _row_groups(n * c * h * w, c, h)
    numbers = np.array([c, h, w, n, tiles // c, *_images(source, target)], np.int64)
    return Stage("copy", IMAGES, (value,), (value,), tiles, (numbers,), why="layout")


def _is_transposed(before: Layout, after: Layout) -> bool:
    """Whether one side is in C order and on the other images lie next to each other."""
    planes = before or after
    return (
        (before is None) != (after is None)
        and planes is not None
        and (planes.lanes > 1 or (planes.vectors and planes.plane == 1))
    )


def _transposition(shape: tuple[int, int, int, int], before: Layout, after: Layout) -> tuple[np.ndarray, int]:
    n, c, h, w = shape
    planes = before or after
    assert planes is not None
    lanes, step = (planes.lanes, planes.step) if planes.lanes > 1 else (n, 1)
    start = planes.lead * planes.step
    if h == w == 1:  # then channels are the columns
        inner = Side(start, 1, planes.channel, block=planes.plane * step)
        rows, counts = Side(0, c, 1, block=c * lanes), Counts(n, lanes, c)
    else:
        inner = Side(start, 1, step, planes.pitch * step, planes.channel, planes.plane * step)
        rows, counts = Side(0, c * h * w, 1, w, h * w, c * h * w * lanes), Counts(n, lanes, w, h, c)
    return cut(rows, inner, counts) if before is None else cut(inner, rows, counts)


class _Contiguous:
    """Planes without borders, an image after the other."""

    def __init__(self, n: int, c: int, h: int, w: int) -> None:
        self.channel, self.plane, self.pitch = h * w, c * h * w, w
        self.lanes, self.step, self.lead, self.phase = 1, 1, 0, 0
        self.phases = self.split = (1, 1)
        self.bands = 1

    def row(self, number: int) -> int:
        """Floats from the begin to a row of the first channel and image."""
        return number * self.pitch


def _row_groups(elements: int, channels: int, rows: int) -> int:
    """Pieces that a channel is cut into, so that a tile holds some ten thousand elements."""
    return int(max(1, min(rows, elements // channels // 16384)))


def _images(source: Planes | _Contiguous, target: Planes | _Contiguous) -> list[int]:
    lanes = max(source.lanes, target.lanes)
    numbers = [lanes]
    for side in (source, target):
        block, image = (side.plane * side.step, 1) if side.lanes == lanes else (side.plane * lanes, side.plane)
        numbers += [side.channel, block, image, side.pitch * side.step, side.step, side.lead * side.step]
    return numbers


def emit(module: Module) -> None:
    """Add the copying functions."""
    row_copy.emit(module, ROWS)
    _emit_images(module)
    transpose.emit(module, MATRIX)


def _share(body: Body, tile: ir.Value, groups: ir.Value, rows: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The channel of a tile, and its first and last row."""
    builder = body.builder
    group = builder.urem(tile, groups)
    first = builder.udiv(builder.mul(group, rows), groups)
    last = builder.udiv(builder.mul(builder.add(group, body.const(1)), rows), groups)
    return builder.udiv(tile, groups), first, last


def _emit_images(module: Module) -> None:
    """Image by image within a position: planes with lanes, and vectors."""
    body = Body(module, IMAGES)
    b = body.builder
    buffers, constants, tile = body.arguments
    numbers = body.numbers(body.pointer(constants, 0), 18)
    _, height, width, images, groups, lanes = numbers[:6]
    sides = [numbers[6:12], numbers[12:18]]
    pointers = [body.pointer(buffers, i) for i in (0, 1)]
    channel, first, last = _share(body, tile, groups, height)
    with body.loop(first, last) as row, body.loop(0, width) as column:
        bases = []
        for pointer, (of_channel, _, _, of_row, of_column, lead) in zip(pointers, sides, strict=True):
            place = b.add(lead, b.mul(channel, of_channel))
            place = b.add(place, b.add(b.mul(row.index, of_row), b.mul(column.index, of_column)))
            bases.append(body.at(pointer, place, F32))
        blocks = b.udiv(b.add(images, b.sub(lanes, body.const(1))), lanes)
        with body.loop(0, blocks) as block:
            here = [body.at(base, b.mul(block.index, side[1]), F32) for base, side in zip(bases, sides, strict=True)]
            rest = b.sub(images, b.mul(block.index, lanes))
            count = b.select(b.icmp_signed("<", rest, lanes), rest, lanes)
            with body.loop(0, count) as lane:
                value = body.load(here[0], b.mul(lane.index, sides[0][2]), F32)
                body.store(value, here[1], b.mul(lane.index, sides[1][2]))
    body.done()
