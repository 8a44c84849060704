"""How a dense layer's output is cut into tiles of a few positions, for the kernel with channels in the lanes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsify.engine.layout import Planes
from sparsify.engine.program import Convolution, Linear
from sparsify.engine.sliding import reach, taps

STEPS = (1, 2)  # strides along a row that the kernel knows


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of `rows` x `columns` positions whose numbers in the input are `step` apart.

    table: int32 [tiles, 4] of input and output offset in bytes, mask of lanes, 0. Where tiles have two rows the
    first `whole` of them do; a last row that is left over makes tiles of its own.
    """

    rows: int
    columns: int
    step: int
    table: np.ndarray
    whole: int = 0

    @property
    def positions(self) -> int:
        """Positions in all tiles, those that are computed for nothing too."""
        return (len(self.table) + self.whole * (self.rows - 1)) * self.columns


def source(operation: Convolution | Linear, base: Planes, output: Planes, width: int) -> Planes:
    """The layout in which `operation` reads its input, whose own layout is `base`: whole planes, not phases."""
    if isinstance(operation, Linear) or operation.stride == (1, 1):
        return base
    n, c, h, w = base.images, base.channels, base.height, base.width
    edge = reach(operation, (n, c, h, w), (n, output.channels, output.height, output.width), split=False)
    rows, pitch = h + max(edge.top, edge.bottom), w + max(edge.left, edge.right)
    is_enough = (
        base.pitch >= pitch
        and base.plane >= rows * base.pitch
        and base.lead >= edge.top * base.pitch + edge.left
        and base.tail >= edge.bottom * base.pitch + edge.right
    )
    lead, tail = edge.top * pitch + edge.left, edge.bottom * pitch + edge.right + width
    return base if is_enough else Planes(n, c, h, w, 1, pitch, rows * pitch, lead, tail)


def cut(operation: Convolution | Linear, input: Planes, output: Planes, rows: int, columns: int) -> Tiles | None:
    """The tiles of `output`; None where that shape does not fit."""
    down, right = operation.stride if isinstance(operation, Convolution) else (1, 1)
    if rows == 1 and (down, right) == (1, 1) and (input.pitch, input.plane) == (output.pitch, output.plane):
        return Tiles(rows, columns, right, _along(input, output, columns))
    if rows > 1 and (output.width % columns or output.height < rows):
        return None
    paired = output.height // rows * rows
    parts = [(np.arange(0, paired, rows), rows), (np.arange(paired, output.height), 1)]
    tables = [_by_rows(input, output, row, height, columns, (down, right)) for row, height in parts]
    table = np.concatenate(tables)
    last = int(table[:, 0].max()) // 4 + (columns - 1) * right + (rows - 1) * down * input.pitch
    if isinstance(operation, Convolution):
        last += int(taps(operation, operation.weight.shape[2:], input).max())
    if last >= input.channel:
        return None  # idle lanes would be read from beyond the buffer
    return Tiles(rows, columns, right, table, len(tables[0]) if rows > 1 else 0)


def _along(input: Planes, output: Planes, columns: int) -> np.ndarray:
    """The table of tiles that follow each other along the flattened planes, borders skipped where possible."""
    wanted = np.zeros(output.phase + columns, bool)
    wanted[replace(output, channels=1).index().ravel()] = True
    places = np.flatnonzero(wanted)
    starts, at = [], 0
    while at < len(places):
        starts.append(places[at])
        at = int(np.searchsorted(places, places[at] + columns))
    there = np.array(starts, np.int64)
    mask = (wanted[there[:, None] + np.arange(columns)].astype(np.int64) << np.arange(columns)).sum(axis=1)
    return _table(there + input.lead - output.lead, there, mask)


def _by_rows(
    input: Planes, output: Planes, row: np.ndarray, height: int, columns: int, stride: tuple[int, int]
) -> np.ndarray:
    """The table of tiles of `height` rows that begin at `row`; none reaches from one row into the next."""
    numbers = np.arange(-(-output.width // columns))
    image, row, number = np.meshgrid(np.arange(output.images), row, numbers, indexing="ij")
    column = np.maximum(np.minimum(number * columns, output.width - columns), 0)  # the last one may go back
    here = input.lead + image * input.plane + row * stride[0] * input.pitch + column * stride[1]
    there = output.lead + image * output.plane + row * output.pitch + column
    done = (1 << (number * columns - column)) - 1
    chosen = ((1 << np.minimum(columns, output.width - column)) - 1) & ~done
    mask = sum((chosen << columns * further for further in range(height)), np.zeros_like(chosen))
    return _table(here, there, mask)


def _table(here: np.ndarray, there: np.ndarray, mask: np.ndarray) -> np.ndarray:
    columns = [here.ravel() * 4, there.ravel() * 4, mask.ravel(), np.zeros(mask.size, np.int64)]
    return np.stack(columns, axis=1).astype(np.int32)
