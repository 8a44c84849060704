"""From the times of calls to what can be said."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

NOISE = 0.02  # a speed-up within this of 1 is none


@dataclass(frozen=True)
class Interval:
    """The median over rounds with the smallest and largest round.

    The median of what was sampled lies between the extremes of n rounds with a confidence of 1 - 2^(1 - n):
    98 % for seven.
    """

    median: float
    low: float
    high: float


def interval(values: list[float]) -> Interval:
    return Interval(statistics.median(values), min(values), max(values))


def speed_up(dense: list[list[float]], sparse: list[list[float]]) -> Interval:
    """How many times faster the sparse model ran, round by round, by the medians of the rounds' calls."""
    pairs = zip(dense, sparse, strict=True)
    return interval([statistics.median(d) / statistics.median(s) for d, s in pairs])


def verdict(ratio: Interval) -> str:
    """What the speed-up of a sparse model over its dense twin says, in words."""
    measured = f"{ratio.median:.2f}x, between {ratio.low:.2f}x and {ratio.high:.2f}x"
    if ratio.low > 1 + NOISE:
        return f"sparsity makes it faster ({measured})"
    if ratio.high < 1 - NOISE:
        return f"sparsity makes it slower ({measured})"
    return f"no sparse speed-up found ({measured})"
