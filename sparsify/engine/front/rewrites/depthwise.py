"""Scales and shifts by channel that no linear operator takes in, as depthwise convolutions of one tap.

So the kernels that slide over planes run them, and a clamp that follows is fused like any other. The batch
normalisation before each convolution of a wide residual network is the case that matters.
"""

from __future__ import annotations

import numpy as np

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.front.rewrites.affine import scale_and_shift
from sparsify.engine.program import Convolution, Elementwise


def scale_as_depthwise(rewrite: Rewrite) -> None:
    """a x + b by channel of [n, c, h, w] becomes a convolution of one tap and c groups."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, Elementwise) or not rewrite.is_free(i):
            continue
        names = [entry for entry in op.inputs if isinstance(entry, str)]
        sizes = [entry.size for entry in op.inputs if not isinstance(entry, str)]
        shape = rewrite.shape(op.output)
        if len(names) != 1 or len(shape) != 4 or rewrite.shape(names[0]) != shape or sizes != [shape[1]]:
            continue
        maker = rewrite.maker(names[0])
        if maker is not None and not rewrite.is_free(maker):
            continue  # made a convolution just now, and folded into it next
        found = scale_and_shift(op, shape[1], 3) if shape[1] > 1 else None
        if found is None or not np.isfinite(found).all():
            continue
        scale, shift = (part.astype(np.float32) for part in found)
        weight = scale.reshape(-1, 1, 1, 1)
        rewrite.put(i, Convolution(names[0], op.output, weight, shift, groups=shape[1]))
