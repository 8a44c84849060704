"""The pictures of a benchmark: speed-up over sparsity, latency distributions, times of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sparsify.bench.results import SHARES, Measures, Row
from sparsify.bench.statistics import Interval, times
from sparsify.report.svg import LETTER, LogScale, element, line, picture, plain, spanning, spread, text, tooltip
from sparsify.runtimes import LayerTime

WIDTH = 520
ROW = 20  # height of a bar with the space around it
SMALL = 0.01  # share of a run below which steps are drawn as one

Colours = Mapping[str, str]  # runtime -> class of the style sheet
Ratio = Callable[[Row], Interval | None]


def speed_up_chart(rows: Sequence[Row], ratio: Ratio, title: str, colours: Colours) -> str:
    """Speed-up over sparsity, a line for each runtime; both axes logarithmic, sparsity as 1 / density.

    In this way work in proportion to the density is a straight line, which is drawn as well.
    """
    top, bottom = 16.0, 260.0
    right = WIDTH - 60 - LETTER * 1.1 * max(len(row.runtime) for row in rows)  # names are bold
    series: dict[str, list[tuple[float, Interval]]] = {}
    for row in sorted(rows, key=lambda r: r.sparsity):
        if (found := ratio(row)) is not None:
            series.setdefault(row.runtime, []).append((1 / (1 - row.sparsity), found))
    points = [point for line_of in series.values() for point in line_of]
    up = spanning([1.0, *(b for _, r in points for b in (r.low, r.high))], bottom, top, margin=1.15)
    left = max(44.0, 12 + LETTER * max(len(f"{tick:g}x") for tick in up.ticks()))
    across = spanning([work for work, _ in points], left, right, margin=1.04)
    parts = [*_grid(up, left, right), *_sparsities(rows, across, bottom)]
    first, last = min(work for work, _ in points), max(work for work, _ in points)
    ideal = min(last, up.high)
    if ideal > first >= up.low:
        place = {"x1": across(first), "y1": up(first), "x2": across(ideal), "y2": up(ideal)}
        parts.append(element("line", tooltip("time in proportion to the density"), **place, class_="ideal"))
    ends = spread([up(line_of[-1][1].median) for line_of in series.values()], 14.0, top, bottom)
    for (runtime, line_of), end in zip(series.items(), ends, strict=True):
        parts.append(_series(runtime, line_of, across, up, colours[runtime]))
        name = element("tspan", runtime) + f" {times(line_of[-1][1].median)}"
        parts.append(element("text", name, x=right + 8, y=end + 4, class_=f"{colours[runtime]} name"))
    parts.append(text("zeros", (left + right) / 2, bottom + 34, class_="axis", text_anchor="middle"))
    return picture(WIDTH, bottom + 40, title, parts)


def latency_chart(rows: Sequence[Row], title: str, colours: Colours, beside: Sequence[Row] = ()) -> str:
    """The latencies of each row and of its dense twin: fastest call to p99, the middle half, the median.

    beside: rows of a chart beside this one, which is to have the same scale.
    """
    several = len({row.sparsity for row in rows}) > 1
    strips: list[tuple[str, str, Measures]] = []
    for row in sorted(rows, key=lambda r: (list(colours).index(r.runtime), r.sparsity)):
        label = f"{row.runtime} {row.sparsity:.0%}" if several else f"{row.runtime} sparse"
        if row.dense is not None and (not several or all(row.runtime not in strip[0] for strip in strips)):
            strips.append((f"{row.runtime} dense", f"{colours[row.runtime]} twin", row.dense))
        if row.sparse is not None:
            strips.append((label, colours[row.runtime], row.sparse))
    left = 24 + LETTER * max(len(label) for label, _, _ in strips)
    bottom = 8.0 + ROW * len(strips)
    shown = [m for row in (*rows, *beside) for m in (row.sparse, row.dense) if m is not None]
    across = spanning([q for m in shown for q in (m.quantiles_ms[0], m.p99_ms)], left, WIDTH - 60.0, 1.05)
    parts = [
        part
        for tick in across.ticks()
        for part in (
            line(across(tick), 4, across(tick), bottom, class_="grid"),
            text(f"{tick:,g}", across(tick), bottom + 16, class_="axis", text_anchor="middle"),
        )
    ]
    for i, (label, colour, measures) in enumerate(strips):
        parts.append(_strip(label, colour, measures, across, 8.0 + ROW * (i + 0.5), left))
    parts.append(text("milliseconds a call", (left + WIDTH) / 2, bottom + 32, class_="axis", text_anchor="middle"))
    return picture(WIDTH, bottom + 38, title, parts)


def layers_chart(row: Row, title: str, colour: str) -> str:
    """What each step of a run takes, in their order, before that of the dense twin where it has a step of that name."""
    assert row.sparse is not None
    steps, rest = _large(row.sparse.layers)
    twin = _of_the_same_name(row.sparse.layers, row.dense.layers if row.dense is not None else [])
    longest = max(max(step.ms, twin.get(id(step), 0.0)) for step in steps)
    words = [f"{s.ms:.3g} ms" + ("" if s.density is None else f", {s.density:.0%} dense") for s in steps]
    left = 16 + LETTER * max(len(_short(step.name)) for step in steps)
    room = WIDTH - left - 12 - LETTER * max(map(len, words))
    parts = []
    for i, step in enumerate(steps):
        y, dense = 4.0 + 16 * i, twin.get(id(step))
        said = f"{step.name}: {step.operation}, {words[i]}"
        bars = text(_short(step.name), left - 8, y + 11, class_="axis", text_anchor="end")
        if dense is not None:
            bars += element("rect", x=left, y=y, width=room * dense / longest, height=12, class_=f"{colour} twin")
            said += f"; dense twin {dense:.3g} ms"
        bars += element("rect", x=left, y=y + 2, width=room * step.ms / longest, height=8, class_=colour)
        bars += text(words[i], left + room * max(step.ms, dense or 0.0) / longest + 6, y + 11, class_="axis")
        parts.append(element("g", tooltip(said) + bars))
    height = 8.0 + 16 * len(steps)
    if rest:
        total = sum(step.ms for step in rest)
        parts.append(text(f"and {len(rest)} steps that take {total:.3g} ms together", left, height + 12, class_="axis"))
        height += 18
    return picture(WIDTH, height, title, parts)


def _grid(up: LogScale, left: float, right: float) -> list[str]:
    parts = []
    for tick in up.ticks():
        parts.append(line(left, up(tick), right, up(tick), class_="grid"))
        parts.append(text(f"{tick:g}x", left - 6, up(tick) + 4, class_="axis", text_anchor="end"))
    return [*parts, line(left, up(1.0), right, up(1.0), class_="one")]


def _sparsities(rows: Sequence[Row], across: LogScale, bottom: float) -> list[str]:
    parts, free = [], 0.0
    for sparsity in sorted({round(row.sparsity, 3) for row in rows}):
        x = across(1 / (1 - sparsity))
        parts.append(line(x, bottom, x, bottom + 4, class_="tick"))
        words = f"{100 * sparsity:g}%"
        if x >= free:
            parts.append(text(words, x, bottom + 17, class_="axis", text_anchor="middle"))
            free = x + LETTER * (len(words) + 1)
    return parts


def _series(
    runtime: str, points: Sequence[tuple[float, Interval]], across: LogScale, up: LogScale, colour: str
) -> str:  # fmt: skip
    path = " ".join(f"{across(work):.1f},{up(found.median):.1f}" for work, found in points)
    parts = [element("polyline", points=path, class_=colour)]
    for work, found in points:
        words = f"{runtime} at {1 - 1 / work:.1%} zeros: {found.median:.2f}x, {found.low:.2f}x to {found.high:.2f}x"
        parts.append(line(across(work), up(found.low), across(work), up(found.high), class_=colour))
        parts.append(element("circle", tooltip(words), cx=across(work), cy=up(found.median), r=3.5, class_=colour))
    return element("g", "".join(parts))


def _strip(label: str, colour: str, measures: Measures, across: LogScale, y: float, left: float) -> str:
    at = dict(zip((round(share, 2) for share in SHARES), measures.quantiles_ms, strict=True))
    words = (
        f"{label}: p50 {measures.p50_ms:.4g} ms, p90 {measures.p90_ms:.4g} ms, p99 {measures.p99_ms:.4g} ms, "
        f"{measures.calls:,} calls"
    )
    start, stop = across(at[0.25]), across(at[0.75])
    parts = [
        tooltip(words),
        text(label, left - 8, y + 4, class_="axis", text_anchor="end"),
        line(across(at[0]), y, across(measures.p99_ms), y, class_=colour),
        element("rect", x=start, y=y - 5, width=max(1.0, stop - start), height=10, class_=colour),
        line(across(at[0.5]), y - 7, across(at[0.5]), y + 7, class_="median"),
        text(plain(measures.p50_ms), across(measures.p99_ms) + 6, y + 4, class_="axis"),
    ]
    return element("g", "".join(parts))


def _large(layers: Sequence[LayerTime]) -> tuple[list[LayerTime], list[LayerTime]]:
    """Steps that are worth a bar, in their order, and the others."""
    least = SMALL * sum(layer.ms for layer in layers)
    large = [layer for layer in layers if layer.ms >= least and layer.ms > 0] or list(layers[:1])
    return large, [layer for layer in layers if layer not in large]


def _of_the_same_name(layers: Sequence[LayerTime], others: Sequence[LayerTime]) -> dict[int, float]:
    """The others' times by the id of the layer: the n-th of a name belongs to the n-th of that name."""
    queues: dict[str, list[float]] = {}
    for other in others:
        queues.setdefault(other.name, []).append(other.ms)
    return {id(layer): queues[layer.name].pop(0) for layer in layers if queues.get(layer.name)}


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else "…" + name[1 - longest :]
