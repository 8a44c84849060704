"""Arrays by offset and strides: what operations that only move elements do to them, without a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.engine.layout import Planes
from sparsify.engine.program import Shape
from sparsify.engine.sliding import as_images


@dataclass(frozen=True)
class View:
    """Element [i, j, ...] lies at offset + i strides[0] + j strides[1] + ..., all in elements."""

    offset: int
    shape: Shape
    strides: tuple[int, ...]


def contiguous(shape: Shape) -> View:
    """An array in C order."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return View(0, tuple(shape), tuple(strides))


def in_buffer(shape: Shape, layout: Planes | None) -> View | None:
    """A value of this shape in its buffer; None where no strides describe it."""
    if layout is None:
        return contiguous(shape)
    images = as_images(shape)
    if images is None or layout.phases != (1, 1):
        return None
    if layout.blocks > 1 and layout.lanes > 1:
        return None  # an image is a lane of one block of several
    image = layout.plane if layout.lanes == 1 else 1
    offset = layout.lead * layout.step
    if len(shape) == 4:
        return View(offset, shape, (image, layout.channel, layout.pitch * layout.step, layout.step))
    rows = contiguous(shape[:-1]).strides
    return View(offset, shape, (*(image * stride for stride in rows), layout.channel))


def moved(view: View, kind: str, given: Mapping[str, Any], shape: Shape) -> View | None:
    """The result of a Rearrange of one operand, of this shape, as a view; None where it needs a copy."""
    match kind:
        case "transpose":
            return View(view.offset, shape, tuple(view.strides[axis] for axis in given["perm"]))
        case "slice":
            spans = list(zip(given["starts"], given["steps"], view.strides, strict=True))
            offset = view.offset + sum(start * stride for start, _, stride in spans)
            return View(offset, shape, tuple(step * stride for _, step, stride in spans))
        case "expand":
            before = (1,) * (len(shape) - len(view.shape)) + view.shape
            strides = (0,) * (len(shape) - len(view.shape)) + view.strides
            kept = [s if size == new else 0 for s, size, new in zip(strides, before, shape, strict=True)]
            return View(view.offset, shape, tuple(kept))
        case "reshape":
            split = _split(merged(view.shape, view.strides), shape)
            return None if split is None else View(view.offset, shape, split)
        case "view":
            found: View | None = view
            for step, arguments, result in given["steps"]:
                found = moved(found, step, arguments, result) if found is not None else None
            return found
    return None


def merged(shape: Shape, *strides: Sequence[int]) -> list[tuple[int, ...]]:
    """Axes as (size, stride, stride, ...), neighbours joined where every operand allows, without those of size 1."""
    axes: list[tuple[int, ...]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if axes and all(before == size * step for before, step in zip(axes[-1][1:], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, *steps)
        else:
            axes.append((size, *steps))
    return axes


def _split(axes: list[tuple[int, ...]], shape: Shape) -> tuple[int, ...] | None:
    """Strides of the same elements in another shape; None where an axis would straddle two of `axes`."""
    if 0 in shape:
        return contiguous(shape).strides
    strides, rest = [], [list(axis) for axis in axes]
    for size in shape:
        if size == 1:
            strides.append(0)
            continue
        if not rest or rest[0][0] % size:
            return None
        rest[0][0] //= size
        strides.append(rest[0][0] * rest[0][1])
        if rest[0][0] == 1:
            rest.pop(0)
    return tuple(strides)
