"""Where the non-zeros of a sparse layer are: the index arrays that its native products read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.nn.kernels.products import LONGEST

_NARROWEST = 64  # columns of a block: 8 vectors of x and of dx for each fit the first two caches
_NONZEROS = 8  # of a row in a block at least, where blocks can be that wide, to make up for loading the row's sums
_BLOCKS = 16  # of columns, where they need not be narrower: backward shares them out over threads
_TILES = 32  # of rows: forward shares them out over threads
_LOWEST = 16  # rows of a tile


@dataclass(frozen=True, eq=False)
class Pattern:
    """The non-zeros of a matrix [out, in] in the order of use: by block of columns, tile of rows, segment, column.

    A segment is a run of at most LONGEST non-zeros of one row in one block. In a tile the longest come first, so that
    the end of the inner loop is foreseen. The layer's values, gradients and slots stand in the same order.
    """

    shape: tuple[int, int]
    rows: np.ndarray  # int32 [segments]: the row of each
    firsts: np.ndarray  # int64 [segments + 1]: where its non-zeros begin
    columns: np.ndarray  # int32 [nnz]
    bounds: np.ndarray  # int64 [blocks * tiles + 1]: where the segments of each block and tile begin
    row_starts: np.ndarray  # int64 [tiles + 1]
    column_starts: np.ndarray  # int64 [blocks + 1]

    @property
    def count(self) -> int:
        """Non-zeros."""
        return len(self.columns)

    @property
    def tiles(self) -> int:
        return len(self.row_starts) - 1

    @property
    def blocks(self) -> int:
        return len(self.column_starts) - 1

    def row(self) -> np.ndarray:
        """The row of each non-zero, int32 [nnz]."""
        return np.repeat(self.rows, np.diff(self.firsts))

    def positions(self) -> np.ndarray:
        """Flat indices into the dense matrix, int64 [nnz], in the order of the values."""
        return self.row().astype(np.int64) * self.shape[1] + self.columns


def build_pattern(
    positions: np.ndarray, shape: tuple[int, int], narrowest: int = _NARROWEST
) -> tuple[Pattern, np.ndarray]:
    """The pattern with non-zeros at these flat indices, int64 [nnz] ascending, and their order in it.

    narrowest: columns of a block at least. order: int64 [nnz]; values in the pattern's order are `values[order]`.
    Takes time and memory in proportion to the non-zeros, and a sort of the segments.
    """
    height, width = shape
    row, column = np.divmod(positions, width)
    per_block = _block_width(len(positions), shape, narrowest)
    blocks, tiles = max(1, -(-width // per_block)), max(1, min(_TILES, height // _LOWEST))
    row_starts = np.linspace(0, height, tiles + 1).astype(np.int64)
    firsts = _segments(row * blocks + column // per_block)
    rows = row[firsts]
    counts = np.diff(firsts, append=len(positions))
    piece = column[firsts] // per_block * tiles + np.searchsorted(row_starts, rows, side="right") - 1
    ranked = np.argsort(piece * (LONGEST + 1) + LONGEST - counts, kind="stable")
    counts = counts[ranked]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    order = np.repeat(firsts[ranked] - starts[:-1], counts) + np.arange(len(positions))
    pattern = Pattern(
        shape=shape,
        rows=rows[ranked].astype(np.int32),
        firsts=starts,
        columns=column[order].astype(np.int32),
        bounds=np.searchsorted(piece[ranked], np.arange(blocks * tiles + 1)).astype(np.int64),
        row_starts=row_starts,
        column_starts=np.minimum(np.arange(blocks + 1) * per_block, width).astype(np.int64),
    )
    return pattern, order


def arrange(positions: np.ndarray, shape: tuple[int, int], narrowest: int = _NARROWEST) -> tuple[Pattern, np.ndarray]:
    """`build_pattern` of flat indices in any order; values in the pattern's order are `values[order]`."""
    ranked = np.argsort(positions)
    pattern, order = build_pattern(positions[ranked], shape, narrowest)
    return pattern, ranked[order]


def _block_width(count: int, shape: tuple[int, int], narrowest: int) -> int:
    """Columns of a block: few enough for the caches, enough for rows to have some non-zeros in it."""
    height, width = shape
    wanted = -(-_NONZEROS * height * width // max(1, count))
    return max(narrowest, min(wanted, -(-width // _BLOCKS)))


def _segments(key: np.ndarray) -> np.ndarray:
    """Where segments begin: int64, runs of equal keys cut at LONGEST."""
    if not len(key):
        return np.zeros(0, np.int64)
    fresh = np.concatenate([[True], key[1:] != key[:-1]])
    starts = np.flatnonzero(fresh)
    within = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
    return np.flatnonzero(within % LONGEST == 0)
