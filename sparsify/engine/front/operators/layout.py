"""Operators that move elements and compute nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Node
from sparsify.engine.front.registry import importer
from sparsify.engine.front.shapes import normal_axis
from sparsify.engine.program import Gather, Rearrange, Shape


@importer("Reshape")
def reshape(b: Builder, node: Node) -> None:
    before = b.shape(node.input(0))
    wanted = list(b.ints(node, "shape", 1) or ())
    if not node.get("allowzero", 0):
        wanted = [before[i] if size == 0 and i < len(before) else size for i, size in enumerate(wanted)]
    if wanted.count(-1) > 1 or min(wanted, default=0) < -1:
        raise ValueError(f"{tuple(wanted)} leaves more than one size open")
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(before) // rest if rest else 0
    b.reshape(node.input(0), tuple(wanted), node.output(0))


@importer("Flatten")
def flatten(b: Builder, node: Node) -> None:
    shape, axis = b.shape(node.input(0)), node.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise ValueError(f"there is no axis {axis} in {shape}")
    axis = axis + len(shape) if axis < 0 else axis
    b.reshape(node.input(0), (math.prod(shape[:axis]), math.prod(shape[axis:])), node.output(0))


@importer("Squeeze")
def squeeze(b: Builder, node: Node) -> None:
    shape, axes = b.shape(node.input(0)), b.ints(node, "axes", 1)
    if axes is None:
        axes = tuple(i for i, size in enumerate(shape) if size == 1)
    gone = {normal_axis(axis, len(shape)) for axis in axes}
    b.reshape(node.input(0), tuple(s for i, s in enumerate(shape) if i not in gone), node.output(0))


@importer("Unsqueeze")
def unsqueeze(b: Builder, node: Node) -> None:
    shape, axes = b.shape(node.input(0)), b.ints(node, "axes", 1) or ()
    rank = len(shape) + len(axes)
    new = {normal_axis(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise ValueError(f"an axis is named twice in {axes}")
    sizes = iter(shape)
    b.reshape(node.input(0), tuple(1 if i in new else next(sizes) for i in range(rank)), node.output(0))


@importer("Transpose")
def transpose(b: Builder, node: Node) -> None:
    rank = len(b.shape(node.input(0)))
    b.transpose(node.input(0), node.get("perm", tuple(reversed(range(rank)))), node.output(0))


@importer("Concat")
def concat(b: Builder, node: Node) -> None:
    axis = normal_axis(node.get("axis", 1), len(b.shape(node.input(0))))
    b.emit(Rearrange("concat", node.inputs, node.output(0), {"axis": axis}))


def cut(b: Builder, source: str, axes: Sequence[int], spans: Sequence[tuple[int, int, int]], output: str = "") -> str:
    """Slice some axes, each by (start, stop, step) as ONNX has them; all others are kept whole."""
    shape = b.shape(source)
    whole = [(0, size, 1) for size in shape]
    for axis, (start, stop, step) in zip(axes, spans, strict=True):
        if step == 0:
            raise ValueError("a slice of step 0")
        i = normal_axis(axis, len(shape))
        first, last, step = slice(start, stop, step).indices(shape[i])
        whole[i] = (first, last, step)
    starts, stops, steps = zip(*whole, strict=True)
    return b.rearrange("slice", source, output=output, starts=starts, stops=stops, steps=steps)


@importer("Slice")
def slice_(b: Builder, node: Node) -> None:
    starts, stops = b.ints(node, "starts", 1), b.ints(node, "ends", 2)
    if starts is None or stops is None:
        raise ValueError("a slice without bounds")
    axes = b.ints(node, "axes", 3) or tuple(range(len(starts)))
    steps = b.ints(node, "steps", 4) or (1,) * len(starts)
    cut(b, node.input(0), axes, list(zip(starts, stops, steps, strict=True)), node.output(0))


@importer("Split")
def split(b: Builder, node: Node) -> None:
    source = node.input(0)
    axis = normal_axis(node.get("axis", 0), len(b.shape(source)))
    size = b.shape(source)[axis]
    sizes = b.ints(node, "split", 1)
    if sizes is None:
        parts = node.get("num_outputs", len(node.outputs))
        largest = -(-size // parts)
        sizes = tuple(min(largest, max(0, size - i * largest)) for i in range(parts))
    if sum(sizes) != size or len(sizes) != len(node.outputs) or min(sizes) < 0:
        raise ValueError(f"{size} elements cannot be split into {sizes}")
    start = 0
    for output, part in zip(node.outputs, sizes, strict=True):
        if output:
            cut(b, source, [axis], [(start, start + part, 1)], output)
        start += part


@importer("Pad")
def pad(b: Builder, node: Node) -> None:
    source = node.input(0)
    shape = b.shape(source)
    pads = b.ints(node, "pads", 1) or ()
    axes = b.ints(node, "axes", 3) or tuple(range(len(shape)))
    if len(pads) != 2 * len(axes):
        raise ValueError(f"pads {pads} do not fit {len(axes)} axes")
    before, after = [0] * len(shape), [0] * len(shape)
    for i, axis in enumerate(axes):
        before[normal_axis(axis, len(shape))] = pads[i]
        after[normal_axis(axis, len(shape))] = pads[len(axes) + i]
    mode = node.get("mode", "constant")
    if min(*before, *after, 0) < 0:
        raise Unsupported("padding that takes away")
    if mode == "constant":
        fill = b.need_constant(node.input(2)).item() if node.input(2) else node.get("value", 0)
        b.rearrange("pad", source, output=node.output(0), before=tuple(before), after=tuple(after), value=fill)
    else:
        _pad_by_copies(b, source, list(zip(before, after, strict=True)), mode, node.output(0))


def _pad_by_copies(b: Builder, source: str, widths: list[tuple[int, int]], mode: str, output: str) -> None:
    """Borders that repeat elements of the array, axis by axis, as a Gather of constant places."""
    if mode not in ("reflect", "edge", "wrap"):
        raise ValueError(f"there is no padding mode {mode!r}")
    for axis, width in enumerate(widths):
        size = b.shape(source)[axis]
        if width != (0, 0):
            numpy_mode: Any = mode
            places = np.pad(np.arange(size), width, mode=numpy_mode)
            source = b.emit(Gather(b.operand(source), places, b.fresh(output), axis))
    b.alias(output, source)


def expand_to(b: Builder, source: str, shape: Shape, output: str) -> None:
    """numpy's broadcast_to; nothing where the shape is that already."""
    if b.shape(source) == shape:
        b.alias(output, source)
    else:
        b.rearrange("expand", source, shape, output)


@importer("Expand")
def expand(b: Builder, node: Node) -> None:
    wanted = b.ints(node, "shape", 1) or ()
    if min(wanted, default=0) < 0:
        raise ValueError(f"a shape cannot be {wanted}")
    expand_to(b, node.input(0), np.broadcast_shapes(b.shape(node.input(0)), wanted), node.output(0))


@importer("Tile")
def tile(b: Builder, node: Node) -> None:
    """Each axis [n] as [1, n], expanded to [repeats, n] and joined."""
    shape, repeats = b.shape(node.input(0)), b.ints(node, "repeats", 1) or ()
    if len(shape) != len(repeats) or min(repeats, default=0) < 0:
        raise ValueError(f"{shape} cannot be repeated {repeats} times")
    apart = tuple(part for size in shape for part in (1, size))
    wide = tuple(part for pair in zip(repeats, shape, strict=True) for part in pair)
    expanded = b.fresh(node.output(0))
    expand_to(b, b.reshape(node.input(0), apart), wide, expanded)
    whole = tuple(n * size for n, size in zip(repeats, shape, strict=True))
    b.reshape(b.resolve(expanded), whole, node.output(0))


@importer("DepthToSpace")
def depth_to_space(b: Builder, node: Node) -> None:
    n, c, h, w = b.shape(node.input(0))
    k = node.get("blocksize", 1)
    if node.get("mode", "DCR") == "DCR":
        apart, perm = (n, k, k, c // (k * k), h, w), (0, 3, 4, 1, 5, 2)
    else:
        apart, perm = (n, c // (k * k), k, k, h, w), (0, 1, 4, 2, 5, 3)
    moved = b.transpose(b.reshape(node.input(0), apart), perm)
    b.reshape(moved, (n, c // (k * k), h * k, w * k), node.output(0))


@importer("SpaceToDepth")
def space_to_depth(b: Builder, node: Node) -> None:
    n, c, h, w = b.shape(node.input(0))
    k = node.get("blocksize", 1)
    apart = b.reshape(node.input(0), (n, c, h // k, k, w // k, k))
    perm = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    b.reshape(b.transpose(apart, perm), (n, c * k * k, h // k, w // k), node.output(0))


@importer("Gather")
def gather(b: Builder, node: Node) -> None:
    data, indices = node.input(0), b.operand(node.input(1))
    axis = normal_axis(node.get("axis", 0), len(b.shape(data)))
    size = b.shape(data)[axis]
    if not isinstance(indices, str) and indices.size and not -size <= indices.min() <= indices.max() < size:
        raise ValueError(f"indices from {indices.min()} to {indices.max()} reach beyond {size} entries")
    b.emit(Gather(b.operand(data), indices, node.output(0), axis))
