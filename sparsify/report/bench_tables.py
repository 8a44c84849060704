"""A benchmark for a terminal of 80 columns, or 100 where batches and threads vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparsify.bench.results import BreakEven, Report, Row
from sparsify.bench.statistics import Interval, sign, times
from sparsify.report.svg import plain
from sparsify.report.tables import human_count

FEW = 12  # rows of which verdicts are spelled out
RESTLESS = 1.5  # slowest round over fastest, beyond which a machine is called noisy
SLOWEST = 10  # layers that are shown of each runtime
STYLES = {1: "green", -1: "red", 0: "", None: "dim"}


def bench_table(report: Report, layers: bool = False) -> RenderableType:
    """A table for each model, what follows in words, and what was left out. layers: with the slowest of them."""
    parts: list[RenderableType] = [Text(_machine(report))]
    for source, rows in by_source(report.rows).items():
        parts.append(_times(source, rows))
        if len(cases(rows)) == 1 and rows[0].sparse is not None:
            parts.append(_costs(rows))
        if layers:
            parts += [_layers(row) for row in rows if row.sparse is not None and row.sparse.layers]
    if report.break_even:
        parts.append(_break_even(report.break_even))
    return Group(*parts, Text("\n".join(notes(report))))


def by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows in the order of their sources."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return found


def cases(rows: Sequence[Row]) -> dict[tuple[float, int, int], list[Row]]:
    """Rows of one source by their sparsity, batch and number of threads."""
    found: dict[tuple[float, int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.sparsity, row.batch, row.threads), []).append(row)
    return found


def notes(report: Report) -> list[str]:
    """What was found, in sentences: verdicts of what is no sweep, noise, and what was left out."""
    found = []
    single = [row for rows in by_source(report.rows).values() if len(cases(rows)) == 1 for row in rows]
    if len(single) <= FEW:
        found += [f"{row.source} in {_named(row)}: {row.verdict}." for row in single]
        found += _against_the_best(single)
    found += [f"Wrong: {why}" for why in dict.fromkeys(report.wrong.values())]
    if report.unfinished:
        found.append(f"Not reached: {len(report.unfinished)} places of the grid, from {report.unfinished[0]} on.")
    for why in dict.fromkeys(report.left_out.values()):
        places = ", ".join(place for place, reason in report.left_out.items() if reason == why)
        found.append(f"Left out: {places}, because {why.rstrip('.')}.")
    found += _unsettled(report.rows)
    complaints = [*(report.noise.complaints() if report.noise is not None else []), *_restless(report.rows)]
    if complaints:
        found.append(f"This machine is noisy: {'; '.join(complaints)}. Close other programs.")
    ratio = report.rows[0].speed_up if report.rows else None
    sure = f" with {ratio.confidence:.1%} confidence" if ratio is not None and ratio.confidence else ""
    found.append(
        f"Medians of {report.protocol['rounds']} rounds{_launches(report)}, ± the wider side of their interval{sure}; "
        f"ratios are taken round by round. The dense twin is the same network without zeros. Outputs agree to "
        f"{report.largest_error:.0e} (relative)."
    )
    return found


def _named(row: Row) -> str:
    """Several runtimes may come in one package."""
    return row.version if row.version.startswith(f"{row.runtime} ") else f"{row.runtime} ({row.version})"


def _times(source: str, rows: list[Row]) -> Table:
    size = f", {human_count(rows[0].file_bytes)}B" if rows[0].file_bytes else ""
    table = _table(f"{source}{size if len({row.file_bytes for row in rows}) == 1 else ''}")
    batches, threads = (len({getattr(row, key) for row in rows}) > 1 for key in ("batch", "threads"))
    heads = ["zeros", *["batch"] * batches, *["threads"] * threads, "runtime", "sparse ms", "dense ms", "speed-up"]
    for name in [*heads, "over best", "p99 ms"]:
        table.add_column(name, justify="left" if name == "runtime" else "right", no_wrap=True)
    for row in [row for case in cases(rows).values() for row in (*case, None)][:-1]:
        if row is None:
            table.add_section()
            continue
        place: list[Any] = [f"{row.sparsity:.1%}", *[str(row.batch)] * batches, *[str(row.threads)] * threads]
        best = row.against_best
        table.add_row(
            *place,
            row.runtime,
            f"{_short(row.sparse_ms.median)} {_spread(row.sparse_ms)}",
            f"{_short(row.dense_ms.median)} {_spread(row.dense_ms)}",
            _ratio(row.speed_up),
            "" if best is None else _ratio(best),
            "" if row.sparse is None else _short(row.sparse.p99_ms),
        )
    return table


def _costs(rows: list[Row]) -> Table:
    table = _table("")
    table.add_column("sparse model in", no_wrap=True)
    for name in ("p50 ms", "p90 ms", "samples/s", "load ms", "first ms", "peak memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        m = row.sparse
        assert m is not None
        memory = "?" if m.memory_bytes is None else f"{human_count(m.memory_bytes)}B"
        cells = (m.p50_ms, m.p90_ms, m.throughput, m.load_ms, m.first_ms)
        table.add_row(row.runtime, *map(_short, cells), memory)
    return table


def _layers(row: Row) -> Table:
    assert row.sparse is not None
    total = sum(layer.ms for layer in row.sparse.layers)
    place = f"{row.sparsity:.1%} zeros, batch {row.batch}, threads {row.threads}"
    count = len(row.sparse.layers)
    table = _table(f"{row.runtime}, {place}: the slowest of {count} steps, which take {total:.3g} ms")
    for name in ("layer", "operation", "density", "ms", "share"):
        table.add_column(name, justify="left" if name in ("layer", "operation") else "right", overflow="fold")
    for layer in sorted(row.sparse.layers, key=lambda each: -each.ms)[:SLOWEST]:
        density = "" if layer.density is None else f"{layer.density:.1%}"
        table.add_row(layer.name, layer.operation, density, f"{layer.ms:.3g}", f"{layer.ms / max(total, 1e-9):.0%}")
    return table


def _table(title: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    return table


def _machine(report: Report) -> str:
    machine = report.machine
    isa = next((name for name in ("avx512f", "avx2", "asimd") if name in machine["isa"]), "no vector extension known")
    batches = report.protocol.get("batches", [report.protocol["batch"]])
    threads = report.protocol.get("thread_counts", [machine["threads"]])
    return f"{machine['cpu']}, {isa}, threads {_list(threads)}, batch {_list(batches)}"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _ratio(value: Interval) -> Text:
    return Text(f"{times(value.median)} {_spread(value)}", style=STYLES[sign(value)])


def _short(value: float) -> str:
    """Three digits, but no more than four behind the point: what is less is no time that a loop could tell."""
    return plain(value) if value >= 0.01 else f"{value:.4f}"


def _spread(value: Interval) -> str:
    deviation = max(value.high - value.median, value.median - value.low) / value.median
    return f"±{deviation:.0%}" if deviation < 0.995 else "±>99%"


def _against_the_best(rows: list[Row]) -> list[str]:
    """What sparsity buys a user who would otherwise deploy the dense model in whatever runs it fastest."""
    lines = []
    for source, mine in by_source(rows).items():
        dense, sparse = min(mine, key=lambda r: r.dense_ms.median), min(mine, key=lambda r: r.sparse_ms.median)
        paired = sparse.against_best
        ratio = paired.median if paired is not None else dense.dense_ms.median / sparse.sparse_ms.median
        lines.append(
            f"{source}: {sparse.runtime} sparse is {ratio:.2f}x as fast as {dense.runtime} dense, the best of each."
        )
    return lines


def _unsettled(rows: Sequence[Row]) -> list[str]:
    lines = []
    for source, mine in by_source(rows).items():
        restless = [row for row in mine if not all(m is None or m.stable for m in (row.sparse, row.dense))]
        runtimes = dict.fromkeys(row.runtime for row in restless)
        lines += [f"Times of {source} did not settle in the warm-up in {', '.join(runtimes)}."] if restless else []
    return lines


def _launches(report: Report) -> str:
    launches = report.protocol.get("launches", 1)
    return f" in {launches} processes" if launches > 1 else ""


def _restless(rows: Sequence[Row]) -> list[str]:
    sides = [m for row in rows for m in (row.sparse, row.dense) if m is not None]
    widest = max((max(m.rounds_ms) / min(m.rounds_ms) for m in sides), default=1.0)
    return [f"rounds of the same thing differ by up to {widest:.1f}x"] if widest > RESTLESS else []


def _break_even(found: Sequence[BreakEven]) -> Table:
    """From which sparsity on each runtime gains, for each model, batch and number of threads that was swept."""
    table = _table("Zeros pay from this sparsity on")
    batches, threads = (len({getattr(each, key) for each in found}) > 1 for key in ("batch", "threads"))
    table.add_column("model", overflow="fold")
    for name in [*["batch"] * batches, *["threads"] * threads]:
        table.add_column(name, justify="right")
    for name in ("runtime", "over own twin", "over best dense"):
        table.add_column(name, no_wrap=True)
    for each in found:
        place = [each.source, *[str(each.batch)] * batches, *[str(each.threads)] * threads]
        table.add_row(*place, each.runtime, _from(each.over_own), _from(each.over_best))
    return table


def _from(sparsity: float | None) -> str:
    return f"from {sparsity:.0%} on" if sparsity is not None else "never"
