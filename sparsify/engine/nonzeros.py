"""Weights that are mostly zeros: kept without these, and non-zeros counted and found.

numpy looks at floats one by one; through booleans it is several times faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.engine.lazy import Lazy
from sparsify.engine.unread import Unread

LARGE = 4096  # elements
DENSEST = 0.4  # density up to which a non-zero and its place take less than a dense array
_AT_ONCE = 1 << 18  # elements that are looked at at a time, and stay in a cache
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, column (int64 of a dense array, else int32) and value of each non-zero of a matrix, row by row."""


@dataclass(frozen=True, eq=False)
class Packed(Lazy):
    """A float32 array as its non-zeros; numpy.asarray makes it dense."""

    places: np.ndarray  # int32 [nnz], ascending: in the flattened array
    numbers: np.ndarray  # float32 [nnz]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.places.nbytes + self.numbers.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        dense = np.zeros(self.size, np.float32)
        dense[self.places] = self.numbers
        return dense.reshape(self.shape).astype(dtype or np.float32, copy=False)


Weight = np.ndarray | Packed | Unread


def packed(array: np.ndarray) -> Weight:
    """The array, as a copy without zeros where that takes less memory."""
    if array.dtype != np.float32 or not LARGE <= array.size < 2**31:
        return array
    flat = array.reshape(-1)
    is_there = flat != 0
    if np.count_nonzero(is_there) > DENSEST * array.size:
        return array
    places = np.flatnonzero(is_there).astype(np.int32)
    return Packed(array.shape, places, flat[places])


def count(weight: Weight) -> int:
    """How many there are."""
    if isinstance(weight, Unread):
        return weight.nonzeros
    return len(weight.numbers) if isinstance(weight, Packed) else int(np.count_nonzero(weight != 0))


def by_row(matrix: Weight) -> np.ndarray:
    """How many each row of a matrix [rows, columns] has: int64 [rows]."""
    rows, columns = matrix.shape
    if isinstance(matrix, Packed):
        edges = np.minimum(np.arange(rows + 1) * columns, 2**31 - 1).astype(np.int32)
        return np.diff(np.searchsorted(matrix.places, edges))
    together = max(1, _AT_ONCE // max(1, columns))
    parts = [np.count_nonzero(matrix[i : i + together] != 0, axis=1) for i in range(0, rows, together)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def find(matrix: Weight, first: int = 0, last: int | None = None) -> Found:
    """Those of a matrix [rows, columns], or of some of its rows, the first of which is 0 then."""
    rows, columns = matrix.shape
    last = rows if last is None else last
    if isinstance(matrix, Packed):
        begin, end = np.searchsorted(matrix.places, np.array([first * columns, last * columns], np.int32))
        place, value = matrix.places[begin:end], matrix.numbers[begin:end]
        if first:
            place = place - np.int32(first * columns)
    elif isinstance(matrix, Unread) and (first, last) == (0, rows):
        place, value = _read(matrix)
    else:
        flat = matrix[first:last].reshape(-1)
        place = np.flatnonzero(flat != 0)
        value = flat[place]
    row, column = np.divmod(place, max(columns, 1))
    return row, column, value


def _read(weight: Unread) -> tuple[np.ndarray, np.ndarray]:
    """Places (int32) and values."""
    places, values = np.empty(weight.nonzeros, np.int32), np.empty(weight.nonzeros, np.float32)
    done = 0
    for first, part in weight.parts():
        found = np.flatnonzero(part != 0)
        here = slice(done, done + len(found))
        places[here], values[here] = found + first, part[found]
        done += len(found)
    return places, values
