"""SELL-C-sigma, a compressed format for a sparse matrix times one vector.

Rows stand in slices of one vector register each; a slice's non-zeros lie side by side, padded to the
longest of its rows, so that a step is one vector of values, one of 16-bit columns, one gather and one
multiplication (Kreutzer, Hager, Wellein, Fehske and Bishop, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import I16, I32, I64, Body
from sparsify.engine.nonzeros import Found

COLUMNS = 1 << 16  # that an index of 16 bits reaches


@dataclass(frozen=True, eq=False)
class Slices:
    """A matrix [rows, columns] in slices of `width` rows."""

    order: np.ndarray  # int32 [rows]: the matrix's row that each row here is
    first: np.ndarray  # int64 [slices + 1]: the first step of each slice
    value: np.ndarray  # float32 [steps, width]
    column: np.ndarray  # uint16 [steps, width]; 0 with the value 0 where a row has ended


def in_slices(rows: int, found: Found, width: int, sort: bool = True) -> Slices:
    """The slices of a matrix of `rows` rows with these non-zeros, the longest rows first, which wastes least, if to
    `sort`."""
    row, column, value = found
    counts = np.bincount(row, minlength=rows)
    order = np.argsort(-counts, kind="stable") if sort else np.arange(rows)
    place = np.arange(len(row)) - (np.cumsum(counts) - counts).repeat(counts)  # of a non-zero within its row
    first = np.concatenate([[0], np.cumsum(steps(counts[order], width))]).astype(np.int64)
    home = np.empty(rows, np.int64)
    home[order] = np.arange(rows)
    home = home[row]
    step, lane = first[home // width] + place, home % width
    values, columns = np.zeros((first[-1], width), np.float32), np.zeros((first[-1], width), np.uint16)
    values[step, lane] = value
    columns[step, lane] = column
    return Slices(order.astype(np.int32), first, values, columns)


def steps(counts: np.ndarray, width: int) -> np.ndarray:
    """Steps of each slice of rows with so many non-zeros."""
    return np.maximum.reduceat(counts, np.arange(0, len(counts), width))


def add_products(
    body: Body, arrays: Sequence[ir.Value], vector: ir.Value, piece: ir.Value, total: ir.Value
) -> ir.Value:
    """A slice's sums: `total` and the products with `vector`. `arrays`: first, value and column of the slices."""
    b, kind = body.builder, body.module.vector
    narrow, wide = ir.VectorType(I16, kind.count), ir.VectorType(I32, kind.count)
    first, values, columns = arrays
    start, stop = (body.load(first, b.add(piece, body.const(i)), I64, align=8) for i in (0, 1))
    with body.loop(start, stop, 1, [total]) as step:
        weight = b.load(body.at(values, step.index, kind), typ=kind, align=4)
        column = b.load(body.at(columns, step.index, narrow), typ=narrow, align=2)
        found = body.gather(vector, b.zext(column, wide))
        step.following = [body.fma(weight, found, step.state[0])]
    return step.state[0]
