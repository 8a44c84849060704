"""Recurrent layers cut into what does not depend on the last step and what does."""

from __future__ import annotations

from dataclasses import replace

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Linear, Recurrent, Value


def inputs_at_once(rewrite: Rewrite) -> None:
    """The inputs' share of all gates at all steps becomes one Linear in front of the Recurrent."""
    for i, op in enumerate(rewrite.operations):
        if isinstance(op, Recurrent) and op.weight is not None:
            steps, images, _ = rewrite.shape(op.input)
            first = next(name for name in op.outputs if name)
            share = Value(f"{first}:gates", (steps, images, len(op.weight)))
            linear = Linear(op.input, share.name, op.weight, op.bias[0], name=op.name)
            rewrite.put_all(i, (linear, replace(op, input=share.name, weight=None)), values=(share,))
