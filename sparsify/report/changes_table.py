"""Two benchmarks side by side, for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparsify.bench.changes import Change, Changes
from sparsify.bench.statistics import NOISE

STYLES = {"slower": "red", "faster": "green", "too few rounds to say": "dim"}


def changes_table(found: Changes) -> RenderableType:
    """Times then and now, the change with its interval, and what could not be compared."""
    table = Table(box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("model", overflow="fold", min_width=8)
    grid = [name for name in ("batch", "threads") if len({getattr(change, name) for change in found.changes}) > 1]
    for name in ("zeros", *grid, "runtime", "old ms", "new ms", "change"):
        table.add_column(name, justify="left" if name == "runtime" else "right", no_wrap=True)
    table.add_column("said", overflow="fold")
    for change in found.changes:
        zeros = "twin" if change.dense else f"{change.sparsity:.1%}"
        place = [str(getattr(change, name)) for name in grid]
        times = (f"{change.old_ms:.3g}", f"{change.new_ms:.3g}", _percent(change))
        said = Text(change.verdict, style=STYLES.get(change.verdict, ""))
        table.add_row(change.source, zeros, *place, change.runtime, *times, said)
    return Group(table, Text("\n".join(_notes(found))))


def _percent(change: Change) -> str:
    median, low, high = (100 * (value - 1) for value in (change.ratio.median, change.ratio.low, change.ratio.high))
    return f"{median:+.0f}% [{low:+.0f}, {high:+.0f}]"


def _notes(found: Changes) -> list[str]:
    versions = dict.fromkeys(change.versions for change in found.changes if change.versions[0] != change.versions[1])
    lines = [f"{then} then, {now} now." for then, now in versions]
    if found.pace is not None and abs(found.pace - 1) > NOISE:
        lines.append(
            f"The machine itself took {found.pace:.2f}x of its earlier time for a loop that is always the same; "
            f"changes no larger than that are not the program's."
        )
    lines += [f"Only in the old report: {label}." for label in found.only_old]
    lines += [f"Only in the new report: {label}." for label in found.only_new]
    return lines
