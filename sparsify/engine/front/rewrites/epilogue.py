"""Residual additions and clamps moved into the linear operator's store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.front.rewrites.affine import LINEAR
from sparsify.engine.program import Convolution, Elementwise, Epilogue, Linear


def fuse_residual(rewrite: Rewrite) -> None:
    """add(linear(x), y), shapes alike: the operand that is computed last takes the other in."""
    for j, add in enumerate(rewrite.operations):
        if not isinstance(add, Elementwise) or add.function != "add":
            continue
        first, second = add.inputs
        if not isinstance(first, str) or not isinstance(second, str) or first == second:
            continue
        pairs = sorted(((first, second), (second, first)), key=lambda p: -rewrite.writer.get(p[0], -1))
        for name, residual in pairs:
            i = rewrite.maker(name, LINEAR)
            if i is None or not rewrite.is_private(name) or not rewrite.is_free(i, j):
                continue
            op = rewrite.operations[i]
            assert isinstance(op, (Convolution, Linear))
            same = rewrite.shape(residual) == rewrite.shape(name) == rewrite.shape(add.output)
            if op.epilogue == Epilogue() and same:
                rewrite.put(j, replace(op, output=add.output, epilogue=Epilogue(residual)), i)
                break


def bounds(op: Elementwise) -> tuple[float, float] | None:
    """(low, high) of an operation that only clamps; None for any other."""
    if op.function == "relu":
        return 0.0, np.inf
    if op.function != "clip":
        return None
    limits = [entry for entry in op.inputs[1:] if isinstance(entry, np.ndarray) and entry.size == 1]
    if len(limits) != 2 or not isinstance(op.inputs[0], str):
        return None
    low, high = (float(limit.reshape(-1)[0]) for limit in limits)
    return (low, high) if low <= high else None


def fuse_clip(rewrite: Rewrite) -> None:
    """relu(linear(x)) and its kin: clamp on the way to memory."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, LINEAR):
            continue
        j = rewrite.sole_reader(i)
        after = rewrite.operations[j] if j is not None else None
        if j is None or not isinstance(after, Elementwise) or not rewrite.is_free(i, j):
            continue
        found = bounds(after)
        if found is None:
            continue
        low, high = (float(np.clip(limit, *found)) for limit in (op.epilogue.low, op.epilogue.high))
        rewrite.put(j, replace(op, output=after.output, epilogue=replace(op.epilogue, low=low, high=high)), i)
