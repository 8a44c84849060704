"""The top of the page of a sweep: the fastest runtime at each sparsity, and from where on zeros pay."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sparsify.bench.results import BreakEven, Report, Row
from sparsify.bench.statistics import Interval, sign, times
from sparsify.report.bench_charts import Colours

Place = tuple[str, int, int]  # source, batch, threads


def summary(report: Report, colours: Colours) -> str:
    """Both tables, a line for each model, batch and number of threads; nothing where there is no sweep."""
    if not report.break_even:
        return ""
    return f"<section>{_fastest(report.rows, colours)}{_break_even(report.break_even, colours)}</section>"


def coloured(value: Interval) -> str:
    """A speed-up, in the colour of a gain, of a loss or of neither."""
    kind = {1: "gain", -1: "loss"}.get(sign(value) or 0, "none")
    return f'<b class="{kind}">{times(value.median)}</b>'


def _fastest(rows: Sequence[Row], colours: Colours) -> str:
    sparsities = sorted({round(row.sparsity, 3) for row in rows})
    places = list(dict.fromkeys((row.source, row.batch, row.threads) for row in rows))
    body = []
    for place in places:
        cells = []
        for sparsity in sparsities:
            here = [row for row in rows if (_place(row), round(row.sparsity, 3)) == (place, sparsity)]
            best = min(here, key=lambda row: row.sparse_ms.median, default=None)
            cells.append(_gain(best, colours) if best is not None else "")
        body.append((_words(place, places), cells))
    title = "The fastest of all runtimes, and its speed-up over the fastest that runs the dense twin"
    return _table(title, ["zeros", *(f"{100 * sparsity:g}%" for sparsity in sparsities)], body)


def _break_even(found: Sequence[BreakEven], colours: Colours) -> str:
    runtimes = list(dict.fromkeys(each.runtime for each in found))
    places = list(dict.fromkeys((each.source, each.batch, each.threads) for each in found))
    body = []
    for place in places:
        here = {each.runtime: each for each in found if (each.source, each.batch, each.threads) == place}
        cells = [
            f"{_from(here[name].over_best)} <small>({_from(here[name].over_own)})</small>" if name in here else ""
            for name in runtimes
        ]
        body.append((_words(place, places), cells))
    title = "Zeros pay from there on, against the fastest dense runtime (against its own dense twin)"
    return _table(title, ["", *(_name(name, colours) for name in runtimes)], body)


def _table(title: str, heads: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = "".join(
        f"<tr><td>{escape(words)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for words, cells in body
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>{escape(title)}</h2><div class="wide">{table}</div>'


def _gain(row: Row, colours: Colours) -> str:
    gain = f"{coloured(row.against_best)}<br>" if row.against_best is not None else ""
    return f"{gain}<small>{_name(row.runtime, colours)}</small>"


def _place(row: Row) -> Place:
    return row.source, row.batch, row.threads


def _words(place: Place, places: Sequence[Place]) -> str:
    """A place by its source, and by batch and threads where these vary."""
    words = [place[0]]
    words += [f"batch {place[1]}"] if len({each[1] for each in places}) > 1 else []
    words += [f"threads {place[2]}"] if len({each[2] for each in places}) > 1 else []
    return ", ".join(words)


def _name(runtime: str, colours: Colours) -> str:
    return f'<i class="{colours[runtime]}"></i>{escape(runtime)}'


def _from(sparsity: float | None) -> str:
    return "never" if sparsity is None else f"{sparsity:.0%}"
