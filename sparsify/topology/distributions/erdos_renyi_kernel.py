"""Erdős-Rényi-Kernel: Erdős-Rényi with the kernel's size among the dimensions."""

import math
from collections.abc import Mapping

from sparsify.topology.densities import scale_to_sparsity


def allocate(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """1 - s_l = ε (n_in + n_out + kh + kw) / (n_in n_out kh kw) (Evci et al. 2020, section 3.1).

    For a layer without a kernel this is Erdős-Rényi.
    """
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    return scale_to_sparsity(raw, shapes, sparsity)
