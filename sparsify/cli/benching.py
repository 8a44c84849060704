"""The command `bench`, as it looks while it runs and when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sparsify.bench.benchmark import Turn, benchmark, explain
from sparsify.bench.changes import Changes, compare_reports
from sparsify.bench.results import Report, read_report
from sparsify.engine.explain import Explanation
from sparsify.errors import BenchError
from sparsify.report.bench_csv import write_csv
from sparsify.report.bench_page import write_page
from sparsify.report.bench_tables import bench_table as bench_table
from sparsify.report.changes_table import changes_table as changes_table
from sparsify.report.tables import bar

BAR = 24  # characters


def benchmark_live(
    sources: Sequence[str], runtimes: Sequence[str] | None, options: dict[str, Any], csv: Path | None, html: Path | None
) -> tuple[Report, bool]:
    """`benchmark` with a table of the case in work, on standard error; returns the report and whether it is whole.

    It is drawn between turns alone, never while a runtime is timed. The files are written anew after each place of the
    grid, and an interrupt ends with what was measured so far.
    """
    found: Report | None = None

    def save(report: Report) -> None:
        nonlocal found
        found = report
        write_files(report, csv, html)

    try:
        with _watching() as watch:
            return benchmark(sources, runtimes, watch=watch, save=save, **options), True
    except KeyboardInterrupt:
        if found is None or not found.rows:
            raise
        return found, False


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[Turn], None] | None]:
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield None
        return
    medians: dict[tuple[str, bool], float] = {}
    case = ""
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def watch(turn: Turn) -> None:
            nonlocal case
            if turn.case != case:
                case = turn.case
                medians.clear()
            if turn.median_ms is not None:
                medians[turn.runtime, turn.dense] = turn.median_ms
            live.update(_picture(turn, medians), refresh=True)

        yield watch


def refuse_wrong(report: Report) -> None:
    """Raises BenchError where a runtime's output was wrong."""
    if report.wrong:
        raise BenchError("\n".join(f"{place}: {why}" for place, why in report.wrong.items()))


def _picture(turn: Turn, medians: dict[tuple[str, bool], float]) -> Group:
    table = Table.grid(padding=(0, 2))
    longest = max(medians.values(), default=1.0)
    for (runtime, dense), ms in medians.items():
        table.add_row(runtime, "dense" if dense else "sparse", f"{ms:.3g} ms", bar(ms / longest, BAR))
    head = Text(f"{bar(turn.done / turn.total, BAR)} {turn.done}/{turn.total}  {turn.case}", no_wrap=True)
    return Group(head, table)


def numbers(text: str, option: str, kind: type = int) -> list[Any]:
    """ "1,16" as numbers. Raises BenchError with the option's name."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "1,16" if kind is int else "0,0.5,0.9"
        raise BenchError(f"{option} {text} is not a list of numbers, such as {example}.") from None


def explain_sources(sources: Sequence[str], options: dict[str, Any]) -> dict[str, Explanation]:
    """`explain` for each source at the first sparsity, batch and number of threads."""
    threads, sparsities = options["threads"], options["sparsities"]
    changes = [*options["changes"], *(f"topology.sparsity={s}" for s in sparsities[:1])]
    return {
        source: explain(source, batch=options["batch"][0], threads=threads and threads[0], changes=changes)
        for source in sources
    }


def compare_files(paths: Sequence[str]) -> Changes:
    """What changed from the first report to the second. Raises BenchError unless there are two that can be compared."""
    if len(paths) != 2:
        raise BenchError(f"--compare takes two reports, the old one first, and was given {len(paths)}.")
    return compare_reports(*(read_report(Path(path)) for path in paths))


def write_files(report: Report, csv: Path | None, html: Path | None) -> None:
    """The files that were asked for besides what is printed."""
    if csv is not None:
        write_csv(report, csv)
    if html is not None:
        write_page(report, html)
