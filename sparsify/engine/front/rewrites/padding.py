"""Padding: an operation of its own folded into the convolution that follows, and around maxima."""

from __future__ import annotations

from dataclasses import replace

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Convolution, Linear, Pool, Rearrange


def fold_padding(rewrite: Rewrite) -> None:
    """conv(pad(x)) with zeros around the plane becomes conv(x) with more padding."""
    for i, pad in enumerate(rewrite.operations):
        if not isinstance(pad, Rearrange) or pad.kind != "pad" or pad.arguments["value"] != 0:
            continue
        j = rewrite.sole_reader(i)
        op = rewrite.operations[j] if j is not None else None
        if j is None or not isinstance(op, Convolution) or op.input != pad.output or not rewrite.is_free(i, j):
            continue
        before, after = pad.arguments["before"], pad.arguments["after"]
        if any(before[:2]) or any(after[:2]):
            continue
        added = (*before[2:], *after[2:])
        top, left, bottom, right = (p + a for p, a in zip(op.padding, added, strict=True))
        rewrite.put(j, replace(op, input=pad.inputs[0], padding=(top, left, bottom, right)), i)


def zero_around_maximum(rewrite: Rewrite) -> None:
    """A maximum of numbers that are never negative may see zeros outside the image."""
    for i, pool in enumerate(rewrite.operations):
        if not isinstance(pool, Pool) or pool.kind != "max" or pool.fill == 0:
            continue
        maker = rewrite.maker(pool.input, (Convolution, Linear))
        covered = all(pool.padding[k] <= (pool.kernel[k % 2] - 1) * pool.dilation[k % 2] for k in range(4))
        if maker is not None and rewrite.operations[maker].epilogue.low >= 0 and covered:  # type: ignore[union-attr]
            rewrite.put(i, replace(pool, fill=0.0))
