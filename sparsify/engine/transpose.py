"""Transposing matrices in registers, a square of one vector's width at a time."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, Body, Module

STRIP = 128  # columns in a tile
_TILE = 16384  # elements that make a tile worth its claim


@dataclass(frozen=True)
class Side:
    """How one of the two buffers is walked: its first element, and floats from one of each to the next."""

    start: int
    image: int
    column: int
    row: int = 0
    channel: int = 0
    block: int = 0


@dataclass(frozen=True)
class Counts:
    """Images, how many of them a block holds, and what there is of each."""

    images: int
    lanes: int
    columns: int
    rows: int = 1
    channels: int = 1


def cut(source: Side, target: Side, counts: Counts) -> tuple[np.ndarray, int]:
    """The parameters of the function that `emit` adds, and its tiles."""
    matrices = -(-counts.images // counts.lanes) * counts.channels * counts.rows
    strips = -(-counts.columns // STRIP)
    together = max(1, min(-(-matrices // 16), _TILE // (counts.lanes * min(counts.columns, STRIP))))
    numbers = [*astuple(source), *astuple(target), *astuple(counts), matrices, together, strips]
    return np.array(numbers, np.int64), -(-matrices // together) * strips


def emit(module: Module, name: str) -> None:
    """Add `void name(buffers, constants, tile)`: matrices [images of a block, columns], one for each block,
    channel and row. Of the two buffers one has columns next to each other and the other images."""
    body = Body(module, name)
    b = body.builder
    buffers, constants, tile = body.arguments
    numbers = body.numbers(body.pointer(constants, 0), 20)
    images, lanes, columns, rows, channels, matrices, together, strips = numbers[12:]
    begin = b.mul(b.udiv(tile, strips), together)
    first = b.mul(b.urem(tile, strips), body.const(STRIP))
    last = body.smaller(b.add(first, body.const(STRIP)), columns)
    with body.loop(begin, body.smaller(matrices, b.add(begin, together))) as matrix:
        row, rest = b.urem(matrix.index, rows), b.udiv(matrix.index, rows)
        channel, block = b.urem(rest, channels), b.udiv(rest, channels)
        count = body.smaller(lanes, b.sub(images, b.mul(block, lanes)))
        sides = []
        for i, (start, image, column, by_row, by_channel, by_block) in enumerate((numbers[:6], numbers[6:12])):
            place = b.add(b.add(start, b.mul(row, by_row)), b.add(b.mul(channel, by_channel), b.mul(block, by_block)))
            sides.append((body.at(body.pointer(buffers, i), place, F32), image, column))
        _matrix(body, sides, count, first, last)
    body.done()


def _matrix(
    body: Body, sides: list[tuple[ir.Value, ir.Value, ir.Value]], images: ir.Value, first: ir.Value, last: ir.Value
) -> None:
    """One matrix: its columns `first` to `last`. A side is a pointer and the steps of image and column."""
    b, width = body.builder, body.module.width
    source, target = sides
    neighbours = b.icmp_signed("==", source[2], body.const(1))  # the source's columns
    whole_images = b.and_(images, body.const(-width))
    whole_columns = b.add(first, b.and_(b.sub(last, first), body.const(-width)))
    with body.loop(0, whole_images, width) as image, body.loop(first, whole_columns, width) as column:
        here, there = (body.at(p, b.add(b.mul(image.index, i), b.mul(column.index, c)), F32) for p, i, c in sides)
        step = [b.select(neighbours, i, c) for i, c in (source[1:], (target[2], target[1]))]
        rows = [
            b.load(body.at(here, b.mul(step[0], body.const(k)), F32), typ=body.module.vector, align=4)
            for k in range(width)
        ]
        for k, vector in enumerate(square(body, rows)):
            b.store(vector, body.at(there, b.mul(step[1], body.const(k)), F32), align=4)
    # What no square covers: the last images of all columns, and the last columns of the other images.
    zero = body.const(0)
    for edge in ((whole_images, images, first, last), (zero, whole_images, whole_columns, last)):
        with body.loop(edge[0], edge[1]) as image, body.loop(edge[2], edge[3]) as column:
            places = [b.add(b.mul(image.index, i), b.mul(column.index, c)) for _, i, c in sides]
            body.store(body.load(source[0], places[0], F32), target[0], places[1])


def square(body: Body, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of a square of vectors: as often as its width can be halved, row i is interleaved with
    the row half a square below."""
    width, half = len(rows), len(rows) // 2
    kind = ir.VectorType(I32, width)
    low = ir.Constant(kind, [i // 2 + width * (i % 2) for i in range(width)])
    high = ir.Constant(kind, [half + i // 2 + width * (i % 2) for i in range(width)])
    for _ in range(width.bit_length() - 1):
        pairs = list(zip(rows[:half], rows[half:], strict=True))
        rows = [body.builder.shuffle_vector(a, c, order) for a, c in pairs for order in (low, high)]
    return rows
