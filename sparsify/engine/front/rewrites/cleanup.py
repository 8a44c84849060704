"""Dead code, and operations that are a simpler one in disguise."""

from __future__ import annotations

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Pool, Reduce, writes


def drop_unread(rewrite: Rewrite) -> None:
    """Operations whose results nobody reads."""
    for i, op in enumerate(rewrite.operations):
        if not any(name in rewrite.readers or name in rewrite.program.outputs for name in writes(op)):
            rewrite.drop(i)


def pool_everything_is_mean(rewrite: Rewrite) -> None:
    """A pool whose one window is the whole plane is a mean or maximum over it."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, Pool) or any(op.padding) or op.dilation != (1, 1):
            continue
        if op.kernel == rewrite.shape(op.input)[2:]:
            rewrite.put(i, Reduce("mean" if op.kind == "average" else "max", op.input, op.output, (2, 3)))
