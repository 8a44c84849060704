"""Every layer at the same sparsity, the first one dense."""

from collections.abc import Mapping

FIRST_DENSE = True  # s_1: the network's first layer, unless rules say something else of it


def allocate(shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """s_l = S, and s_1 = 0 (Evci et al. 2020, section 3.1).

    The first layer has few weights and does much work, so it stays dense, outside the budget.
    """
    return dict.fromkeys(shapes, sparsity)
