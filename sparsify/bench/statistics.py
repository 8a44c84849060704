"""From the times of calls to what can be said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOISE = 0.02  # a ratio within this of 1 is no difference: layout and clocks alone move two copies of a process that far
CONFIDENCE = 0.95  # at least; what an interval reaches exactly depends on the number of rounds


@dataclass(frozen=True)
class Interval:
    """A median over rounds with a confidence interval.

    The bounds are order statistics: the median of what was sampled lies between the k-th smallest and the k-th
    largest of n rounds with the confidence 1 - 2 P(X < k), X binomial with n trials of 1/2. That holds for any
    distribution (Hahn and Meeker, Statistical Intervals, section 5.2). k is the largest with at least 95 %: rounds
    that something disturbed are left outside from nine rounds on, and below six the bounds are the extremes.
    """

    median: float
    low: float
    high: float
    confidence: float = 0.0  # 0 in reports of earlier versions, which do not say


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of `values`, at least one, with the narrowest interval that is as sure as asked, where one is."""
    ordered = sorted(values)
    rank = max([k for k in range(1, len(ordered) // 2 + 1) if _confidence(len(ordered), k) >= confidence], default=1)
    bounds = ordered[rank - 1], ordered[-rank]
    return Interval(statistics.median(ordered), *bounds, max(0.0, _confidence(len(ordered), rank)))


def speed_up(slow: Sequence[Sequence[float]], fast: Sequence[Sequence[float]]) -> Interval:
    """How many times faster `fast` ran than `slow`, paired round by round, by the medians of the rounds' calls."""
    pairs = zip(slow, fast, strict=True)
    return interval([statistics.median(s) / statistics.median(f) for s, f in pairs])


def sign(ratio: Interval, noise: float = NOISE) -> int | None:
    """1 where the ratio is above 1 beyond noise and doubt, -1 below, 0 where no difference was found.

    None where there were too few rounds to say.
    """
    if ratio.confidence < CONFIDENCE:
        return None
    return 1 if ratio.low > 1 + noise else -1 if ratio.high < 1 - noise else 0


def verdict(ratio: Interval) -> str:
    """What the speed-up of a sparse model over its dense twin says, in words."""
    measured = f"{times(ratio.median)}, between {times(ratio.low)} and {times(ratio.high)}"
    said = {
        1: "sparsity makes it faster",
        0: "no sparse speed-up found",
        -1: "sparsity makes it slower",
        None: "too few rounds to say",
    }
    return f"{said[sign(ratio)]} ({measured})"


def times(ratio: float) -> str:
    """A ratio as people read it, to two digits at least."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def quantiles(values: Sequence[float], at: Sequence[float]) -> list[float]:
    """The smallest value that at least a share `at` of all are not above, for each share."""
    ordered = sorted(values)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in at]


def _confidence(rounds: int, rank: int) -> float:
    outside: int = sum(math.comb(rounds, k) for k in range(rank))
    return 1 - 2 * outside / 2**rounds
