"""A benchmark as one HTML page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from sparsify.bench.results import Report, Row
from sparsify.bench.statistics import Interval
from sparsify.files import write_bytes
from sparsify.report.bench_charts import Colours, latency_chart, layers_chart, speed_up_chart
from sparsify.report.bench_summary import coloured, summary
from sparsify.report.bench_tables import by_source, notes
from sparsify.report.svg import plain
from sparsify.report.tables import human_count

STYLE = Path(__file__).with_name("bench_page.css")
COLOURS = 8  # that the style sheet knows
MANY = 20  # rows of which the latencies fill two charts
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header><h1>What sparsity buys</h1><p>$machine</p></header>
$body
</main>
</body>
</html>
""")


def write_page(report: Report, path: Path) -> None:
    """Write the page. Raises DiskError where that fails; the same report gives the same bytes."""
    runtimes = list(dict.fromkeys(row.runtime for row in report.rows))
    colours = {runtime: f"c{i % COLOURS}" for i, runtime in enumerate(runtimes)}
    sources = by_source(report.rows)
    parts = [_legend(colours), summary(report, colours), _findings(report)]
    parts += [_model(source, rows, colours) for source, rows in sources.items()]
    parts.append(_environment(report))
    page = PAGE.substitute(
        title=escape(f"sparsify bench: {', '.join(Path(source).name for source in sources)}"),
        style=STYLE.read_text(),
        machine=escape(_machine(report)),
        body="\n".join(parts),
    )
    write_bytes(path, page.encode())


def _legend(colours: Colours) -> str:
    items = "".join(f'<li><i class="{colour}"></i>{escape(name)}</li>' for name, colour in colours.items())
    return f'<ul class="legend">{items}</ul>'


def _findings(report: Report) -> str:
    found = [f"<li>{escape(note)}</li>" for note in notes(report)]
    return f"<section><h2>What was found</h2><ul>{''.join(found)}</ul></section>"


def _model(source: str, rows: list[Row], colours: Colours) -> str:
    parts = [f"<h2>{escape(Path(source).name)}</h2>"]
    places = list(dict.fromkeys((row.batch, row.threads) for row in rows))
    for batch, threads in places:
        mine = [row for row in rows if (row.batch, row.threads) == (batch, threads)]
        if len(places) > 1 or any(row.threads for row in mine):
            parts.append(f"<h3>batch {batch}, threads {threads}</h3>")
        parts.append('<div class="charts">' + "".join(_charts(source, mine, colours)) + "</div>")
        parts.append(_table(mine, colours))
        parts += _layers(mine, colours)
    return f"<section>{''.join(parts)}</section>"


def _charts(source: str, rows: list[Row], colours: Colours) -> list[str]:
    charts = []
    if len({row.sparsity for row in rows}) > 1:
        best, own = "Speed-up over the fastest dense runtime", "Speed-up over the dense twin in the same runtime"
        if all(row.against_best is not None for row in rows):
            charts.append(_figure(best, speed_up_chart(rows, lambda r: r.against_best, f"{source}: {best}", colours)))
        charts.append(_figure(own, speed_up_chart(rows, lambda r: r.speed_up, f"{source}: {own}", colours)))
    if any(row.sparse is not None for row in rows):
        words = "Latency: fastest call to 99th percentile, middle half, median"
        runtimes = list(dict.fromkeys(row.runtime for row in rows))
        first = runtimes[: (len(runtimes) + 1) // 2] if len(rows) > MANY else runtimes
        halves = [[row for row in rows if (row.runtime in first) == inside] for inside in (True, False)]
        for half in filter(None, halves):
            charts.append(_figure(words, latency_chart(half, f"{source}: {words}", colours, beside=rows)))
    return charts


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _layers(rows: list[Row], colours: Colours) -> list[str]:
    """A picture of the layers for each row that has them; that of the highest sparsity is open."""
    told = [row for row in rows if row.sparse is not None and row.sparse.layers]
    most = max((row.sparsity for row in told), default=0.0)
    parts = []
    for row in sorted(told, key=lambda r: -r.sparsity):
        words = f"Layers in {row.runtime} at {row.sparsity:.1%} zeros"
        chart = layers_chart(row, f"{row.source}: {words}", colours[row.runtime])
        opened = " open" if row.sparsity == most else ""
        parts.append(f"<details{opened}><summary>{escape(words)}</summary>{chart}</details>")
    return ['<div class="charts">', *parts, "</div>"] if parts else []


HEADS = (
    "runtime", "zeros", "sparse ms", "dense ms", "speed-up", "over best dense", "p50", "p90", "p99", "samples/s",
    "load ms", "first ms", "memory",
)  # fmt: skip


def _table(rows: list[Row], colours: Colours) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEADS)
    body = []
    for before, row in zip([None, *rows], rows, strict=False):
        m = row.sparse
        cells = [
            f'<i class="{colours[row.runtime]}"></i>{escape(row.runtime)}',
            f"{row.sparsity:.1%}",
            _spread(row.sparse_ms),
            _spread(row.dense_ms),
            _ratio(row.speed_up),
            _ratio(row.against_best) if row.against_best is not None else "",
        ]
        if m is not None:
            cells += [plain(value) for value in (m.p50_ms, m.p90_ms, m.p99_ms, m.throughput, m.load_ms, m.first_ms)]
            cells.append("" if m.memory_bytes is None else f"{human_count(m.memory_bytes)}B")
        cells += [""] * (len(HEADS) - len(cells))
        group = ' class="group"' if before is not None and before.sparsity != row.sparsity else ""
        body.append(f"<tr{group}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _spread(value: Interval) -> str:
    words = f"{value.low:.4g} to {value.high:.4g}"
    return f'{plain(value.median)} <small title="{words}">±{_width(value):.0%}</small>'


def _ratio(value: Interval) -> str:
    words = f"{value.low:.3f} to {value.high:.3f}"
    return f'{coloured(value)} <small title="{words}">±{_width(value):.0%}</small>'


def _width(value: Interval) -> float:
    """The wider side of the interval, as a share of the median."""
    return max(value.high - value.median, value.median - value.low) / value.median


def _environment(report: Report) -> str:
    facts: dict[str, object] = {key: _fact(key, value) for key, value in report.machine.items()}
    facts["runtimes"] = ", ".join(dict.fromkeys(row.version for row in report.rows))
    facts |= {key: _fact(key, value) for key, value in report.protocol.items() if key not in ("batch", "threads")}
    if report.noise is not None:
        noise = report.noise
        facts["reference loop"] = f"slowest {noise.drift:.2f}x of the fastest"
        facts["CPU taken by others"] = "unknown" if noise.others is None else f"{noise.others:.1%}"
        facts["CPU stolen"] = "unknown" if noise.stolen is None else f"{noise.stolen:.1%}"
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return f"<section><h2>How it was measured</h2><dl>{rows}</dl></section>"


def _fact(key: str, value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return (
        "unknown"
        if value is None
        else f"{human_count(value)}B"
        if key == "memory" and isinstance(value, int)
        else value
    )


def _machine(report: Report) -> str:
    machine = report.machine
    return f"{machine['cpu']}, {machine['cores']} cores, {machine.get('system', '')}"
