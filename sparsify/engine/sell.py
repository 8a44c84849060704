"""Compressed formats for a sparse matrix times one vector: SELL-C-sigma, and segments of columns.

SELL: rows stand in slices of one vector register each; a slice's non-zeros lie side by side, padded to the
longest of its rows, so that a step is one vector of values, one of 16-bit columns, one gather and one
multiplication (Kreutzer, Hager, Wellein, Fehske and Bishop, 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLUMNS = 1 << 16  # that an index of 16 bits reaches


@dataclass(frozen=True, eq=False)
class Slices:
    """A matrix [rows, columns] in slices of `width` rows."""

    order: np.ndarray  # int32 [rows]: the matrix's row that each row here is
    first: np.ndarray  # int64 [slices + 1]: the first step of each slice
    value: np.ndarray  # float32 [steps, width]
    column: np.ndarray  # uint16 [steps, width]; 0 with the value 0 where a row has ended


def in_slices(weight: np.ndarray, width: int, sort: bool = True) -> Slices:
    """The slices of `weight` [rows, columns], the longest rows first, which wastes least, if to `sort`."""
    counts = np.count_nonzero(weight, axis=1)
    order = np.argsort(-counts, kind="stable") if sort else np.arange(len(weight))
    weight, counts = weight[order], counts[order]
    row, column = np.nonzero(weight)
    start = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(len(row)) - start[row]  # of a non-zero within its row
    steps = np.maximum.reduceat(counts, np.arange(0, len(counts), width))
    first = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    step = first[row // width] + place
    value, columns = np.zeros((first[-1], width), np.float32), np.zeros((first[-1], width), np.uint16)
    value[step, row % width] = weight[row, column]
    columns[step, row % width] = column
    return Slices(order.astype(np.int32), first, value, columns)


SEGMENT = 32  # columns that one permutation of two registers reaches, with 16 lanes each


@dataclass(frozen=True, eq=False)
class Segments:
    """Matrices [matrices, rows, columns] for one vector, cut into slices of rows and segments of columns.

    A step has one vector of non-zeros for each matrix, from 16 rows and one segment. The operand's numbers
    come by a permutation of the two registers that hold the segment, many times faster than by a gather.
    """

    first: np.ndarray  # int64 [slices * segments + 1]: the first step of each slice and segment
    value: np.ndarray  # float32 [steps, matrices, width]
    column: np.ndarray  # uint8 [steps, matrices, width], within the segment


def in_segments(weights: np.ndarray, width: int) -> Segments:
    """The segments of `weights` [matrices, rows, columns]; rows are a multiple of `width`."""
    matrices, rows, columns = weights.shape
    slices, segments = rows // width, -(-columns // SEGMENT)
    matrix, row, column = np.nonzero(weights)
    piece = row // width * segments + column // SEGMENT
    lane = (piece * matrices + matrix) * width + row % width
    order = np.argsort(lane, kind="stable")
    counts = np.bincount(lane, minlength=slices * segments * matrices * width)
    start = np.cumsum(counts) - counts
    place = np.empty(len(lane), np.int64)  # of a non-zero within its lane
    place[order] = np.arange(len(lane)) - start[lane[order]]
    steps = counts.reshape(slices * segments, -1).max(axis=1)
    first = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    value = np.zeros((first[-1], matrices, width), np.float32)
    inside = np.zeros((first[-1], matrices, width), np.uint8)
    value[first[piece] + place, matrix, row % width] = weights[matrix, row, column]
    inside[first[piece] + place, matrix, row % width] = column % SEGMENT
    return Segments(first, value, inside)
