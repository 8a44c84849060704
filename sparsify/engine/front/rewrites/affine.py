"""Scales and shifts by constants, batch normalisation among them, folded into linear operators' weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.nonzeros import packed
from sparsify.engine.program import Convolution, Elementwise, Epilogue, Linear

Array = np.ndarray[Any, Any]
LINEAR = (Convolution, Linear)


def channel_constant(array: Array, channels: int, axis_from_end: int) -> Array | None:
    """A constant that varies along the channel axis alone as a vector [channels]; None where it does not."""
    if array.dtype != np.float32:
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(-1)[0])
    at = array.ndim - axis_from_end
    if at < 0 or array.shape[at] != channels or array.size != channels:
        return None
    return array.reshape(-1)


def scale_and_shift(op: Elementwise, channels: int, axis_from_end: int) -> tuple[Array, Array] | None:
    """(a, b), each [channels], of an operation that is a x + b by channel; None for any other."""
    if op.function not in ("add", "sub", "mul", "div") or len(op.inputs) != 2:
        return None
    first, second = op.inputs
    constant = first if isinstance(second, str) else second
    if isinstance(constant, str) or (isinstance(first, np.ndarray) and op.function == "div"):
        return None
    c = channel_constant(constant, channels, axis_from_end)
    if c is None:
        return None
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if op.function == "add":
        return ones, c
    if op.function == "sub":
        return (ones, -c) if isinstance(first, str) else (-ones, c)
    if op.function == "mul":
        return c, zeros
    with np.errstate(divide="ignore"):
        return 1 / c, zeros


def _axis_from_end(op: Convolution | Linear) -> int:
    return 3 if isinstance(op, Convolution) else 1


def fold_scale_and_shift_after(rewrite: Rewrite) -> None:
    """(W x + b) a + c becomes (a W) x + (a b + c)."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, LINEAR) or op.epilogue != Epilogue() or rewrite.is_full:
            continue
        j = rewrite.sole_reader(i)
        after = rewrite.operations[j] if j is not None else None
        if j is None or not isinstance(after, Elementwise) or not rewrite.is_free(i, j):
            continue
        found = scale_and_shift(after, len(op.bias), _axis_from_end(op))
        if found is None or rewrite.shape(after.output) != rewrite.shape(op.output):
            continue
        scale, shift = found
        if not np.isfinite(scale).all():
            continue
        weight = op.weight
        if not (scale == 1).all():
            weight = packed(np.asarray(weight) * scale.reshape(-1, *(1,) * (weight.ndim - 1)))
        rewrite.put(j, replace(op, output=after.output, weight=weight, bias=op.bias * scale + shift), i)


def fold_scale_and_shift_before(rewrite: Rewrite) -> None:
    """W (a x + c) + b becomes (W a) x + (b + W c); a shift only where no zero padding comes in between."""
    for i, before in enumerate(rewrite.operations):
        j = rewrite.sole_reader(i) if isinstance(before, Elementwise) else None
        op = rewrite.operations[j] if j is not None else None
        if j is None or not isinstance(op, LINEAR) or not isinstance(before, Elementwise) or rewrite.is_full:
            continue
        if op.input != before.output or not rewrite.is_free(i, j):
            continue
        source = next((entry for entry in before.inputs if isinstance(entry, str)), "")
        if not source or rewrite.shape(source) != rewrite.shape(before.output):
            continue
        folded = _folded_before(rewrite, op, before)
        if folded is not None:
            rewrite.put(j, replace(folded, input=source), i)


def _folded_before(rewrite: Rewrite, op: Convolution | Linear, before: Elementwise) -> Convolution | Linear | None:
    channels = rewrite.shape(op.input)[-_axis_from_end(op)]
    found = scale_and_shift(before, channels, _axis_from_end(op))
    if found is None or not np.isfinite(found[0]).all():
        return None
    scale, shift = found
    weight = np.asarray(op.weight)
    if isinstance(op, Linear):
        return replace(op, weight=packed(weight * scale), bias=op.bias + weight @ shift)
    if shift.any() and any(op.padding):
        return None
    # channel i of an output's group is channel group * size + i of the input
    out_channels, size = weight.shape[:2]
    per_group = out_channels // op.groups

    def spread(vector: Array) -> Array:
        return np.repeat(vector.reshape(op.groups, size), per_group, axis=0)[:, :, None, None]

    bias = op.bias + (weight * spread(shift)).sum(axis=(1, 2, 3))
    return replace(op, weight=packed(weight * spread(scale)), bias=bias.astype(np.float32))
