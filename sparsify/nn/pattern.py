"""Where the non-zeros of a sparse layer are: the index arrays that its native products read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sparsify.nn.kernels.products import LONGEST

_NARROWEST = 64  # columns of a block: 8 vectors of x and of dx for each fit the first two caches
_NONZEROS = 8  # of a row in a block at least, where blocks can be that wide, to make up for loading the row's sums
_BLOCKS = 16  # of columns, where they need not be narrower: backward shares them out over threads
_TILES = 32  # of rows: forward shares them out over threads
_LOWEST = 16  # rows of a tile
_PART = 1 << 16  # non-zeros that are sorted at a time


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

    def ascending(self) -> tuple[np.ndarray, np.ndarray]:
        """The flat indices in ascending order, and where the value of each stands: int64 [nnz] both."""
        ranked = np.argsort(self.rows, kind="stable")  # the segments of a row stand from left to right
        counts = np.diff(self.firsts)[ranked]
        order = _runs(self.firsts[:-1][ranked], counts)
        row = np.repeat(self.rows[ranked].astype(np.int64) * self.shape[1], counts)
        return row + self.columns[order], order


def _runs(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """firsts[0], firsts[0] + 1, ... counts[0] numbers, then those from firsts[1]: int64."""
    starts = np.cumsum(counts) - counts
    return np.repeat(firsts - starts, counts) + np.arange(int(counts.sum()))


def build_pattern(
    positions: np.ndarray, shape: tuple[int, int], narrowest: int = _NARROWEST
) -> tuple[Pattern, np.ndarray]:
    """The pattern with non-zeros at these flat indices, int64 [nnz] ascending, and their order in it.

    narrowest: columns of a block at least. order: int64 [nnz]; values in the pattern's order are `values[order]`.
    Takes time and memory in proportion to the non-zeros, and a sort of the segments.
    """
    height, width = shape
    per_block = _block_width(len(positions), shape, narrowest)
    blocks, tiles = max(1, -(-width // per_block)), max(1, min(_TILES, height // _LOWEST))
    row_starts = np.linspace(0, height, tiles + 1).astype(np.int64)
    edges = np.searchsorted(positions, row_starts * width)
    groups = np.linspace(0, tiles, min(tiles, 1 + len(positions) // _PART) + 1).astype(int)
    parts = [
        _sort(positions, edges[first : last + 1], row_starts[first : last + 1], width, per_block, blocks)
        for first, last in pairwise(groups)
    ]
    segments = [(part, part.of(block)) for block in range(blocks) for part in parts]
    entries = [(part, slice(part.ends[own.start], part.ends[own.stop])) for part, own in segments]
    counts = np.concatenate([part.counts[own] for part, own in segments])
    numbers = np.concatenate([np.diff(part.bounds).reshape(blocks, -1) for part in parts], axis=1)
    pattern = Pattern(
        shape=shape,
        rows=np.concatenate([part.rows[own] for part, own in segments]),
        firsts=np.concatenate([[0], np.cumsum(counts)]),
        columns=np.concatenate([part.columns[own] for part, own in entries]),
        bounds=np.concatenate([[0], np.cumsum(numbers)]),
        row_starts=row_starts,
        column_starts=np.minimum(np.arange(blocks + 1) * per_block, width).astype(np.int64),
    )
    return pattern, np.concatenate([part.order[own] for part, own in entries])


@dataclass(frozen=True, eq=False)
class _Part:
    """The segments of some tiles, in the pattern's order: few enough that what is worked out stays in the cache."""

    rows: np.ndarray  # int32, of each segment
    counts: np.ndarray  # int64, its non-zeros
    ends: np.ndarray  # int64 [segments + 1], the non-zeros of all before it
    columns: np.ndarray  # int32 [nnz]
    order: np.ndarray  # int64 [nnz], into all positions
    bounds: np.ndarray  # int64 [blocks * tiles + 1], where the segments of each block and tile begin
    tiles: int

    def of(self, block: int) -> slice:
        """A block's segments."""
        return slice(self.bounds[block * self.tiles], self.bounds[(block + 1) * self.tiles])


def _sort(
    positions: np.ndarray, edges: np.ndarray, row_starts: np.ndarray, width: int, per_block: int, blocks: int
) -> _Part:
    """edges: where the positions of each tile begin, and those of the last end; row_starts: the same of rows."""
    own, tiles = positions[edges[0] : edges[-1]], len(edges) - 1
    row = own // max(1, width)  # together with the remainder numpy takes four times as long
    column = own - row * width
    firsts, counts = _segments(row * blocks + column // per_block)
    rows = row[firsts]
    piece = column[firsts] // per_block * tiles + np.searchsorted(row_starts, rows, side="right") - 1
    ranked = np.argsort(piece * (LONGEST + 1) + LONGEST - counts, kind="stable")
    order = _runs(firsts[ranked], counts[ranked])
    bounds = np.searchsorted(piece[ranked], np.arange(blocks * tiles + 1)).astype(np.int64)
    return _Part(
        rows=rows[ranked].astype(np.int32),
        counts=counts[ranked],
        ends=np.concatenate([[0], np.cumsum(counts[ranked])]),
        columns=column[order].astype(np.int32),
        order=order + edges[0],
        bounds=bounds,
        tiles=tiles,
    )


def arrange(positions: np.ndarray, shape: tuple[int, int], narrowest: int = _NARROWEST) -> tuple[Pattern, np.ndarray]:
    """`build_pattern` of flat indices in any order; values in the pattern's order are `values[order]`."""
    ranked = np.argsort(positions, kind="stable")  # ascending runs are merged
    pattern, order = build_pattern(positions[ranked], shape, narrowest)
    return pattern, ranked[order]


def _block_width(count: int, shape: tuple[int, int], narrowest: int) -> int:
    """Columns of a block: few enough for the caches, enough for rows to have some non-zeros in it."""
    height, width = shape
    wanted = -(-_NONZEROS * height * width // max(1, count))
    return max(narrowest, min(wanted, -(-width // _BLOCKS)))


def _segments(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where segments begin, and their lengths: int64, runs of equal keys cut at LONGEST."""
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(key))
    pieces = -(-lengths // LONGEST)
    skipped = LONGEST * _runs(np.zeros(len(pieces), np.int64), pieces)
    return np.repeat(starts, pieces) + skipped, np.minimum(np.repeat(lengths, pieces) - skipped, LONGEST)
