"""Zero padding as an operation of its own folded into the convolution that follows."""

from __future__ import annotations

from dataclasses import replace

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Convolution, Rearrange


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
