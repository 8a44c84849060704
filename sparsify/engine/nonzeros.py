"""Weights that are mostly zeros: kept without these, and non-zeros counted and found.

numpy looks at floats one by one; through booleans it is several times faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGE = 4096  # elements
DENSEST = 0.4  # density up to which a non-zero and its place take less than a dense array
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, column (int64, or int32 of a packed matrix) and value of each non-zero of a matrix, row by row."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A float32 array as its non-zeros; numpy.asarray makes it dense."""

    shape: tuple[int, ...]
    places: np.ndarray  # int32 [nnz], ascending: in the flattened array
    numbers: np.ndarray  # float32 [nnz]

    dtype = np.dtype(np.float32)

    @property
    def size(self) -> int:
        """Elements, the zeros too."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.places.nbytes + self.numbers.nbytes

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> Packed:
        """The same elements in another shape, one of whose sizes may be -1."""
        rest = self.size // -math.prod(shape) if -1 in shape else 0
        return Packed(tuple(rest if size == -1 else size for size in shape), self.places, self.numbers)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        dense = np.zeros(self.size, np.float32)
        dense[self.places] = self.numbers
        return dense.reshape(self.shape).astype(dtype or np.float32, copy=False)


Weight = np.ndarray | Packed


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
    return len(weight.numbers) if isinstance(weight, Packed) else int(np.count_nonzero(weight != 0))


def find(matrix: Weight) -> Found:
    """Those of a matrix [rows, columns]."""
    if isinstance(matrix, Packed):
        place, value = matrix.places, matrix.numbers
    else:
        place = np.flatnonzero(matrix != 0)
        value = matrix.reshape(-1)[place]
    row, column = np.divmod(place, max(matrix.shape[1], 1))
    return row, column, value
