"""What every kernel that slides over planes computes:

    y[o, p] = bias[o] + sum_j value[j] * x[shift[j] + p]        j over the non-zeros of row o

A Convolution of any stride, dilation, padding and grouping, a Linear over a batch and, without weights, a
Pool are cases of it. `positions` lists the vectors of p, `entries` the non-zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsify.engine import nonzeros
from sparsify.engine.layout import LINE, Planes, up
from sparsify.engine.program import Convolution, Linear, Operation, Pool, Shape, writes
from sparsify.engine.stage import Context, Sweep

Window = Convolution | Pool


def as_images(shape: Shape) -> tuple[int, int, int, int] | None:
    """A value's shape as [n, c, h, w], where planes can hold it: a batch of vectors has planes of 1 x 1."""
    if len(shape) == 4:
        n, c, h, w = shape
        return n, c, h, w
    if len(shape) in (2, 3):
        return int(np.prod(shape[:-1])), shape[-1], 1, 1
    return None


def is_by_rows(operation: Operation, layouts: Mapping[str, Planes | None]) -> bool:
    """Whether kernels/rows.py does it: 3 x 3 taps within a channel, positions in the lanes of a vector."""
    output = layouts[writes(operation)[0]]
    return output is not None and output.lanes == 1 and has_few_taps(operation)


def has_few_taps(operation: Operation) -> bool:
    """Whether it stays within a channel and has 3 x 3 taps, for which zeros may stand around the image."""
    if not isinstance(operation, Convolution | Pool):
        return False
    if isinstance(operation, Pool):
        possible = operation.kind == "max" and is_zero_outside(operation)
    else:
        possible = operation.groups == len(operation.weight) and operation.weight.shape[1] == 1
        possible = possible and operation.epilogue.residual is None
    strides = operation.stride in ((1, 1), (2, 2)) and operation.dilation == (1, 1)
    return possible and strides and _kernel(operation) == (3, 3) and max(operation.padding) <= 1


def is_zero_outside(window: Window) -> bool:
    """Whether zeros may stand around the image."""
    return isinstance(window, Convolution) or window.kind == "average" or window.fill == 0 or not any(window.padding)


def is_direct(window: Window, lanes: int) -> bool:
    """Whether `window` reads its input as its producer wrote it, given its output's lanes."""
    if lanes > 1:
        return is_zero_outside(window)
    return has_few_taps(window) or (isinstance(window, Convolution) and window.stride == (1, 1))


def is_pointwise(layer: Convolution) -> bool:
    """Whether it reads no position but those that it writes."""
    return layer.weight.shape[2:] == (1, 1) and layer.stride == (1, 1) and not any(layer.padding)


@dataclass(frozen=True)
class Reach:
    """How far an operator's taps go beyond the image, in rows and columns of a phase plane."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


def reach(window: Window, input: Shape, output: Shape, split: bool) -> Reach:
    """The border that `window` needs; `split` if the planes are split by phase."""
    kernel, sides = _kernel(window), []
    for axis in (0, 1):
        stride, before = window.stride[axis], window.padding[axis]
        first, last = -before, (kernel[axis] - 1) * window.dilation[axis] - before
        size, steps = input[2 + axis], output[2 + axis]
        if split:  # in units of phase planes
            low, high, end = first // stride, last // stride + steps - 1, -(-size // stride) - 1
        else:
            low, high, end = first, last + (steps - 1) * stride, size - 1
        sides.append((max(0, -low), max(0, high - end)))
    (top, bottom), (left, right) = sides
    return Reach(top, left, bottom, right)


def reads_around(operation: Operation, name: str, lanes: int, shapes: Mapping[str, Shape]) -> bool:
    """Whether what lies around the images of an operand matters to the result. Vectors of positions go beyond a row
    everywhere, but what comes of that is not stored."""
    if isinstance(operation, Linear) or (lanes == 1 and has_few_taps(operation)):
        return False
    if not isinstance(operation, Window):
        return True
    return name == operation.input and reach(operation, shapes[name], shapes[operation.output], False) != Reach()


def view(window: Window, input: Shape, output: Planes, width: int, fill: float = 0.0) -> Planes:
    """The layout in which a strided or padded `window` can read its input and write `output`."""
    n, c, h, w = input
    split = output.lanes == 1
    edge = reach(window, input, (n, c, output.height, output.width), split)
    before, after = edge.top, edge.bottom
    if split:
        pitch, plane = output.pitch, output.plane if output.bands == 1 else output.height * output.pitch
        phases = (window.stride[0], window.stride[1])
        kept = (_phases(window, 0), _phases(window, 1))
    else:
        kept = None
        pitch = w + max(edge.left, edge.right)
        plane = (h + max(before, after)) * pitch
        phases = (1, 1)
    lead = before * pitch + edge.left
    tail = after * pitch + edge.right + (width if split else 0)
    return Planes(n, c, h, w, output.lanes, pitch, plane, up(lead, LINE) if split else lead, tail, phases, fill, kept)


def _phases(window: Window, axis: int) -> int:
    """How many phases the taps of one axis read: one if all of them fall on the first, else all."""
    stride, first = window.stride[axis], -window.padding[axis]
    count = _kernel(window)[axis]
    return 1 if all((first + i * window.dilation[axis]) % stride == 0 for i in range(count)) else stride


def _kernel(window: Window) -> tuple[int, int]:
    if isinstance(window, Pool):
        return window.kernel
    return window.weight.shape[2], window.weight.shape[3]


def source(operation: Convolution | Linear | Pool, context: Context) -> tuple[Planes, Planes] | None:
    """The layouts in which `operation` reads its input and writes its output: planes whose rows are equally
    far apart, so that positions run through. None where they are not planes, or kernels/rows.py does it."""
    base, output = context.layouts[operation.input], context.layouts[operation.output]
    if base is None or output is None or is_by_rows(operation, context.layouts):
        return None
    if isinstance(operation, Linear) or is_direct(operation, output.lanes):
        return base, output
    shape = as_images(context.values[operation.input].shape)
    assert shape is not None
    fill = 0.0 if is_zero_outside(operation) else -np.inf
    return view(operation, shape, output, context.target.width, fill), output


def taps(window: Window, kernel: Sequence[int], layout: Planes) -> np.ndarray:
    """Floats from an output position's place in the input plane to each tap: int64 [kh, kw]."""
    rows = [i * window.dilation[0] - window.padding[0] for i in range(kernel[0])]
    columns = [j * window.dilation[1] - window.padding[1] for j in range(kernel[1])]
    return np.array([[layout.shift(r, c) for c in columns] for r in rows], np.int64).reshape(tuple(kernel))


@dataclass(frozen=True, eq=False)
class Positions:
    """Vectors of p: int32 [vectors, 4] of input offset, output offset (bytes), mask bits, 0."""

    table: np.ndarray
    useful: int  # output positions that the vectors cover, lanes without an image not counted


def rows_together(input: Planes, output: Planes) -> int:
    """Rows that vectors of positions may run through: those of a band, of both planes."""
    return math.gcd(*(planes.band_rows for planes in (input, output) if planes.bands > 1)) or output.height


def positions(input: Planes, output: Planes, stride: tuple[int, int], width: int) -> Positions:
    """The vectors in which an operator goes over `output`."""
    useful = output.images * output.height * output.width
    if output.lanes > 1:
        block, row, column = np.meshgrid(
            *(np.arange(k) for k in (output.blocks, output.height, output.width)), indexing="ij"
        )
        there = block * output.plane + row * output.pitch + column + output.lead
        here = block * input.plane + row * stride[0] * input.pitch + column * stride[1] + input.lead
        full = np.full(there.size, (1 << width) - 1)
        columns = [here.ravel() * input.step * 4, there.ravel() * output.step * 4, full, full * 0]
        return Positions(_table(columns), useful)
    parts, rows = [], rows_together(input, output)
    for first in range(0, output.height, rows):
        band = replace(output, channels=1, height=min(rows, output.height - first), band_height=None)
        wanted = np.zeros(band.phase, bool)
        wanted[band.index().ravel()] = True
        usable = wanted[band.lead :]
        usable = np.pad(usable, (0, -len(usable) % width)).reshape(-1, width)
        kept = usable.any(axis=1)
        further = np.flatnonzero(kept) * width
        masks = (usable[kept].astype(np.int64) << np.arange(width)).sum(axis=1)
        parts.append([(input.row(first) + further) * 4, (output.row(first) + further) * 4, masks, masks * 0])
    return Positions(_table([np.concatenate(columns) for columns in zip(*parts, strict=True)]), useful)


def _table(columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.uint32).view(np.int32)


def sweep(operation: Window | Linear, input: Planes, output: Planes, panel: int, tiles: int) -> Sweep | None:
    """How a stage goes over `positions` in panels of `panel` vectors, each of `tiles` tiles. None where vectors
    hold positions rather than images: they do not end with a row."""
    if output.lanes == 1:
        return None
    block, row = np.divmod(np.arange(output.blocks * output.height), output.height)
    first = last = row
    if not isinstance(operation, Linear):
        first = row * operation.stride[0] - operation.padding[0]
        last = first + (_kernel(operation)[0] - 1) * operation.dilation[0]
    needs = np.stack([first, last + 1], axis=1).clip(0, input.height) + (block * input.height)[:, None]
    same = np.arange(len(row))[:, None] + np.arange(2)
    vectors = len(row) * output.width
    starts = np.arange(0, vectors, panel)
    rows = np.stack([starts, np.minimum(starts + panel, vectors) + output.width - 1], axis=1) // output.width
    residual = not isinstance(operation, Pool) and operation.epilogue.residual is not None
    return Sweep(tiles, rows, (needs, same) if residual else (needs,))


@dataclass(frozen=True, eq=False)
class Entries:
    """Non-zeros, row by row, by channel and tap: int64 row, int64 shift in floats, float32 value."""

    rows: int
    row: np.ndarray
    shift: np.ndarray
    value: np.ndarray


def entries(operation: Convolution | Linear, input: Planes, first: int = 0, last: int | None = None) -> Entries:
    """The non-zeros of a layer's weight as shifts in the planes that it reads, or of some of its rows, the first of
    which is 0 then."""
    weight = operation.weight.reshape(len(operation.weight), -1)  # [o, columns]
    last = len(weight) if last is None else last
    row, column, value = nonzeros.find(weight, first, last)
    row = row.astype(np.int64, copy=False)
    if isinstance(operation, Linear):
        return Entries(last - first, row, np.multiply(column, input.channel, dtype=np.int64), value)
    shift = shifts(operation, input)[column]
    if operation.groups > 1:
        shift += (row + first) // (len(weight) // operation.groups) * operation.weight.shape[1] * input.channel
    return Entries(last - first, row, shift, value)


def shifts(operation: Convolution, input: Planes) -> np.ndarray:
    """Floats from an output position's place to each column of the weight, in the first group: int64 [columns]."""
    offsets = taps(operation, operation.weight.shape[2:], input).ravel()
    return (np.arange(operation.weight.shape[1])[:, None] * input.channel + offsets).ravel()
