"""From which sparsity on zeros pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsify.bench.results import BreakEven, Row
from sparsify.bench.statistics import NOISE, Interval, sign

Ratio = Callable[[Row], Interval | None]


def break_even(rows: Sequence[Row]) -> list[BreakEven]:
    """One for each source, runtime, batch and number of threads that was timed at several sparsities."""
    series: dict[tuple[str, str, int, int], list[Row]] = {}
    for row in rows:
        series.setdefault((row.source, row.runtime, row.batch, row.threads), []).append(row)
    return [
        BreakEven(*key, _crossing(points, lambda r: r.speed_up), _crossing(points, lambda r: r.against_best))
        for key, points in series.items()
        if len({row.sparsity for row in points}) > 1
    ]


def _crossing(rows: Sequence[Row], ratio: Ratio) -> float | None:
    """The sparsity from which on the sparse model is faster without doubt at all that were timed.

    Between two of those the time is taken to change in proportion to sparsity. None where it never is.
    """
    points = [(row.sparsity, found) for row in rows if (found := ratio(row)) is not None]
    points.sort(key=lambda point: point[0])
    below: tuple[float, Interval] | None = None  # the last point at which it is not
    above: tuple[float, Interval] | None = None
    for point in points:
        if sign(point[1]) == 1:
            above = above or point
        else:
            below, above = point, None
    if above is None or below is None:
        return above and above[0]
    slow, fast = 1 / below[1].median, 1 / above[1].median  # time of the sparse model in that of the dense one
    level = 1 / (1 + NOISE)  # from which on it counts as faster
    share = (slow - level) / (slow - fast) if slow > level else 0.0
    return below[0] + share * (above[0] - below[0])
