"""Non-zeros counted and found. numpy looks at floats one by one; through booleans it is several times faster."""

from __future__ import annotations

import numpy as np

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, column (int64) and value of each non-zero of a matrix, row by row."""


def count(weight: np.ndarray) -> int:
    """How many there are."""
    return int(np.count_nonzero(weight != 0))


def find(matrix: np.ndarray) -> Found:
    """Those of a matrix [rows, columns]."""
    place = np.flatnonzero(matrix != 0)
    row, column = np.divmod(place, max(matrix.shape[1], 1))
    return row, column, matrix.reshape(-1)[place]
