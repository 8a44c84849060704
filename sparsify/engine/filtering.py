"""Minimal filtering: some neighbouring outputs of a filter by fewer multiplications than taps.

Source: Winograd, Arithmetic Complexity of Computations (1980), for F(m, r); Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks (2016), for its use in networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_POINTS = tuple(map(Fraction, ("0", "1", "-1", "2", "-2", "1/2", "-1/2")))  # small, so that little precision is lost


@dataclass(frozen=True, eq=False)
class Filter:
    """F(m, r), float64: y = outputs @ ((taps @ g) * (inputs @ d)), where y[i] = sum_k g[k] d[i + k].

    Of m + r - 1 products the last one alone sees the last input and, of a filter that ends with 0, is 0.
    """

    inputs: np.ndarray  # [m + r - 1, m + r - 1]
    taps: np.ndarray  # [m + r - 1, r]
    outputs: np.ndarray  # [m, m + r - 1]


def minimal_filter(m: int, r: int) -> Filter:
    """F(m, r): polynomials are multiplied by their values at m + r - 2 points and at infinity (Toom and Cook)."""
    points = _POINTS[: m + r - 2]
    assert len(points) == m + r - 2, "more points are needed than there are"
    others = [_with_roots([other for other in points if other != point]) for point in points]
    scales = [sum(c * point**k for k, c in enumerate(row)) for point, row in zip(points, others, strict=True)]
    inputs = [[*row, Fraction(0)] for row in others] + [_with_roots(points)]
    last = [Fraction(0)]
    taps = [[point**k / scale for k in range(r)] for point, scale in zip(points, scales, strict=True)]
    outputs = [[point**i for point in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    return Filter(*(np.array(rows, np.float64) for rows in (inputs, [*taps, last * (r - 1) + [Fraction(1)]], outputs)))


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of all (x - root), the constant one first."""
    found = [Fraction(1)]
    for root in roots:
        found = [high - root * low for high, low in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found
