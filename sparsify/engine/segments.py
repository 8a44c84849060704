"""A sparse matrix times one vector without gathers: operands are permuted out of registers.

The columns are cut into segments of four registers. A step has a vector of non-zeros, one for each of 16 rows, from
one segment; permutations of the segment's registers bring their operands, faster than a gather. Rows
have different numbers of non-zeros in a segment, so steps that few rows would use are left out: what is over goes
to SELL-C slices, whose operands are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine import sell
from sparsify.engine.ir import F32, I8, I32, I64, Body
from sparsify.engine.nonzeros import Found

SEGMENT = 64  # columns that two permutations reach, each of two registers with 16 lanes
_PART = 1 << 20  # elements of matrices that are packed at a time: what that takes besides is many times as large
_LEAST = 0.4  # of the lanes that a step must fill: below that gathers take less time


@dataclass(frozen=True, eq=False)
class Segments:
    """Matrices [matrices, rows, columns] for one vector, cut into slices of rows and segments of columns.

    A step has one vector of non-zeros for each matrix.
    """

    first: np.ndarray  # int64 [slices * segments + 1]: the first step of each slice and segment
    value: np.ndarray  # float32 [steps, matrices, width]
    column: np.ndarray  # uint8 [steps, matrices, width], within the segment
    rest: sell.Slices  # of the rows of all matrices, one after the other

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `add_products` reads."""
        return self.first, self.value, self.column, self.rest.first, self.rest.value, self.rest.column

    @property
    def vectors(self) -> tuple[int, int]:
        """Vectors of non-zeros that are permuted, and those that are gathered."""
        return self.value.shape[0] * self.value.shape[1], len(self.rest.value)


def in_segments(shape: tuple[int, int, int], found: Found, width: int) -> Segments:
    """The segments of matrices of `shape` [matrices, rows, columns], whose rows are a multiple of `width`. found: the
    non-zeros of all of them, one below the other."""
    matrices, rows, columns = shape
    tall = max(1, _PART // max(1, matrices * width * columns)) * width
    firsts, values, insides, rests = [np.zeros(1, np.int64)], [], [], []
    for start in range(0, rows, tall):
        height = min(tall, rows - start)
        starts = np.arange(matrices) * rows + start
        edges = np.searchsorted(found[0], np.array([starts, starts + height], found[0].dtype)).T
        row, column, number = (np.concatenate([array[a:b] for a, b in edges]) for array in found)
        matrix = np.arange(matrices).repeat(edges[:, 1] - edges[:, 0])
        row -= (matrix * (rows - height) + start).astype(row.dtype)  # in matrices of this height
        first, value, inside, rest = _cut((matrices, height, columns), (row, column, number), width)
        firsts.append(first + firsts[-1][-1])
        values.append(value)
        insides.append(inside)
        every = row[rest] + matrix[rest] * (rows - height) + start
        rests.append((every, column[rest], number[rest]))
    every, column, number = (np.concatenate(parts) for parts in zip(*rests, strict=True))
    order = np.argsort(every, kind="stable")
    over = sell.in_slices(matrices * rows, (every[order], column[order], number[order]), width, sort=False)
    return Segments(np.concatenate(firsts), np.concatenate(values), np.concatenate(insides), over)


def _cut(
    shape: tuple[int, int, int], found: Found, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `in_segments`, of matrices that are not too large: the last step of each slice and segment, values and
    columns of the steps, and which of the non-zeros are left over (bool)."""
    matrices, rows, columns = shape
    slices, segments = rows // width, -(-columns // SEGMENT)
    every, column, number = found
    lengths = np.bincount(every * segments + column // SEGMENT, minlength=matrices * rows * segments)
    place = np.arange(len(every)) - (np.cumsum(lengths) - lengths).repeat(lengths)  # of a non-zero within its lane
    counts = lengths.reshape(matrices, slices, width, segments).transpose(1, 3, 0, 2).reshape(slices * segments, -1)
    least = max(1, round(_LEAST * matrices * width))
    steps = np.sort(counts, axis=1)[:, -least]
    matrix, row = np.divmod(every, rows)
    piece = row // width * segments + column // SEGMENT
    kept = place < steps[piece]
    last = np.cumsum(steps)
    home = ((((last - steps)[piece] + place) * matrices + matrix) * width + row % width)[kept]
    size = int(steps.sum()) * matrices * width
    value, inside = np.zeros(size, np.float32), np.zeros(size, np.uint8)
    value[home] = number[kept]
    inside[home] = column[kept] % SEGMENT
    return last, value.reshape(-1, matrices, width), inside.reshape(-1, matrices, width), ~kept


def add_products(
    body: Body, arrays: Sequence[ir.Value], vectors: Sequence[ir.Value], length: ir.Value,
    pieces: Sequence[ir.Value], totals: Sequence[ir.Value],
) -> list[ir.Value]:  # fmt: skip
    """Sums of one slice of rows: `totals` and the products with `vectors`, of `length` numbers each.

    `arrays` as in `Segments.arrays`; `pieces`: the number of the slice in each matrix, counted through all of them;
    `totals`: for each vector one of each matrix. All matrices of a segment are in one loop: their sums do not wait
    for each other, and its end is met once.
    """
    b, kind = body.builder, body.module.vector
    first, values, columns = arrays[:3]
    narrow, wide = ir.VectorType(I8, kind.count), ir.VectorType(I32, kind.count)
    permute = body.declared("llvm.x86.avx512.vpermi2var.ps.512", kind, [kind, wide, kind])
    segments = b.udiv(b.add(length, body.const(SEGMENT - 1)), body.const(SEGMENT))
    with body.loop(0, segments, 1, totals) as segment:
        begin = b.mul(segment.index, body.const(SEGMENT))
        starts = [b.add(begin, body.const(i * kind.count)) for i in range(4)]
        numbers = [[_numbers(body, vector, start, length) for start in starts] for vector in vectors]
        piece = b.add(b.mul(pieces[0], segments), segment.index)
        edges = [body.load(first, b.add(piece, body.const(i)), I64, align=8) for i in (0, 1)]
        with body.loop(edges[0], edges[1], 1, segment.state) as step:
            row = b.mul(step.index, body.const(len(pieces)))
            step.following = list(step.state)
            for matrix in range(len(pieces)):
                place = b.add(row, body.const(matrix))
                weight = b.load(body.at(values, place, kind), typ=kind, align=4)
                index = b.zext(b.load(body.at(columns, place, narrow), typ=narrow, align=1), wide)
                is_low = b.icmp_unsigned("<", index, body.splat(ir.Constant(I32, SEGMENT // 2)))
                for i, registers in enumerate(numbers):
                    low, high = (b.call(permute, [registers[k], index, registers[k + 1]]) for k in (0, 2))
                    at = i * len(pieces) + matrix
                    step.following[at] = body.fma(weight, b.select(is_low, low, high), step.state[at])
        segment.following = step.state
    return [
        sell.add_products(body, arrays[3:], vectors[i // len(pieces)], pieces[i % len(pieces)], total)
        for i, total in enumerate(segment.state)
    ]


def _numbers(body: Body, vector: ir.Value, start: ir.Value, length: ir.Value) -> ir.Value:
    """A register of the vector's numbers, zero beyond its end."""
    b, width = body.builder, body.module.width
    lanes = ir.Constant(ir.VectorType(I32, width), list(range(width)))
    mask = b.icmp_signed("<", lanes, body.splat(b.trunc(b.sub(length, start), I32)))
    return body.masked_load(body.at(vector, start, F32), mask)
