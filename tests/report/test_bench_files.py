"""A benchmark as CSV and as a page: every figure is there, and a browser shows the page without a network."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from sparsify.bench.break_even import break_even
from sparsify.bench.noise import Noise
from sparsify.bench.results import Measures, Report, Row
from sparsify.bench.statistics import interval, quantiles, verdict
from sparsify.report.bench_csv import HEAD, write_csv
from sparsify.report.bench_page import write_page
from sparsify.report.svg import spanning, spread
from sparsify.runtimes import LayerTime

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def measures(ms: float, layers: int) -> Measures:
    times = [ms * (1 + 0.01 * (i % 7)) for i in range(40)]
    p50, p90, p99 = quantiles(times, (0.5, 0.9, 0.99))
    steps = [LayerTime(f"block.{i}.conv <{i}>", "Conv", ms / layers, 0.1 if i else None) for i in range(layers)]
    at = quantiles(times, [i / 20 for i in range(21)])
    return Measures(40, [ms] * 9, p50, p90, p99, at, 1e3 / ms, 40.0, 2 * ms, 90_000_000, True, steps)


@pytest.fixture
def report() -> Report:
    """A sweep of two models in runtimes of long and short names, one of which gains from zeros."""
    rows = []
    for source in ("resnet50-imagenet", "runs/<b>&another"):
        for batch in (1, 16):
            for sparsity in SPARSITIES:
                for runtime, gains in (("onnxruntime", 0.0), ("sparsify_cpu", 1.0), ("torch_compile_inductor", 0.1)):
                    ms = batch * (1.4 if gains else 1.0) * (1 - gains * sparsity)
                    sparse, dense = interval([ms, ms * 1.01, ms * 0.99] * 3), interval([batch * 1.4] * 9)
                    ratio = interval([1.4 * batch / ms * (1 + 0.01 * i) for i in range(9)])
                    rows.append(
                        Row(
                            source, runtime, f"{runtime} 1.0", sparsity, batch, sparse, dense, ratio, verdict(ratio), 2,
                            "d", 4_000_000, "onnxruntime", interval([batch / ms] * 9), measures(ms, 12),
                            measures(1.4 * batch, 12),
                        )
                    )  # fmt: skip
    machine = {"cpu": "A CPU", "cores": 2, "isa": ["avx2"], "threads": 2, "memory": 8 << 30, "governor": None}
    protocol = {"batch": 1, "batches": [1, 16], "threads": 2, "thread_counts": [2], "rounds": 9, "seconds": 0.25}
    return Report(rows, {"openvino": "it is not installed"}, machine, 2e-7, protocol, break_even(rows), Noise([1.0]))


def test_csv_has_a_line_for_each_side_of_each_row(report, tmp_path):
    write_csv(report, tmp_path / "r.csv")
    lines = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert list(lines[0]) == HEAD and len(lines) == 2 * len(report.rows)
    for row, sparse, dense in zip(report.rows, lines[::2], lines[1::2], strict=True):
        assert (sparse["model"], dense["model"], sparse["source"]) == ("sparse", "dense", row.source)
        assert float(sparse["median_ms"]) == row.sparse_ms.median and float(sparse["p99_ms"]) == row.sparse.p99_ms
        assert float(sparse["speed_up"]) == row.speed_up.median and dense["speed_up"] == "1"
        assert int(dense["memory_bytes"]) == 90_000_000


def test_csv_of_a_report_of_an_earlier_version(report, tmp_path):
    old = dataclasses.replace(report, rows=[dataclasses.replace(report.rows[0], sparse=None, dense=None)])
    write_csv(old, tmp_path / "r.csv")
    assert next(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))["p50_ms"] == ""


class Outline(html.parser.HTMLParser):
    """Tags that are open, text by tag, and whatever would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "data", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_escaped_and_fetches_nothing(report, tmp_path):
    write_page(report, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == [] and outline.fetched == []
    assert "<script" not in page and "url(" not in page and "@import" not in page and "<b>&another" not in page
    assert "<b>&another" in outline.text and "openvino" in outline.text
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    # for each model and batch: two of speed-up, one of latency, and the layers of each row
    assert len(pictures) == 2 * 2 * (3 + 3 * len(SPARSITIES))
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.find("{http://www.w3.org/2000/svg}title").text
    write_page(report, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_a_sweep_is_summed_up_at_the_top(report, tmp_path):
    write_page(report, tmp_path / "r.html")
    fastest, pays = re.findall(r"<table>.*?</table>", (tmp_path / "r.html").read_text(), re.DOTALL)[:2]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(?=<td>)(.*?)</tr>", fastest)]
    assert [row[0] for row in rows[:2]] == ["resnet50-imagenet, batch 1", "resnet50-imagenet, batch 16"]
    at_99 = next(row for row in report.rows if row.sparsity == 0.99 and row.runtime == "sparsify_cpu")
    assert "sparsify_cpu" in rows[0][-1] and f'class="gain">{at_99.against_best.median:.2f}x' in rows[0][-1]
    cells = re.findall(r"<td>(.*?)</td>", pays)[:4]  # onnxruntime, sparsify_cpu, torch_compile_inductor
    shares = {each.runtime: each.over_best for each in report.break_even if each.batch == 1}
    assert cells[1].startswith("never ") and shares["onnxruntime"] is None
    assert cells[2].startswith(f"{shares['sparsify_cpu']:.0%} ")


def test_long_sweeps_have_their_latencies_in_two_charts(report, tmp_path):
    more = [dataclasses.replace(row, runtime=f"{row.runtime}_{i}") for row in report.rows for i in range(2)]
    write_page(dataclasses.replace(report, rows=more, break_even=break_even(more)), tmp_path / "r.html")
    charts = re.findall(r"<figcaption>Latency.*?</figure>", (tmp_path / "r.html").read_text(), re.DOTALL)
    assert len(charts) == 2 * 2 * 2
    ticks = [re.findall(r'text-anchor="middle">([\d.,]+)<', chart) for chart in charts]
    assert ticks[0] == ticks[1] and len(ticks[0]) > 2


def test_a_page_of_the_least_report(report, tmp_path):
    row = dataclasses.replace(report.rows[0], sparse=None, dense=None, against_best=None, threads=0)
    protocol = {"batch": 1, "threads": 2, "rounds": 7, "seconds": 0.3, "reference": "onnxruntime"}
    least = Report([row], {}, {"cpu": "A CPU", "cores": 2, "isa": [], "threads": 2}, 1e-7, protocol)
    write_page(least, tmp_path / "r.html")
    assert "<svg" not in (tmp_path / "r.html").read_text()


PROBE = """
<script>
const wrong = [];
if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page scrolls sideways");
document.querySelectorAll("details").forEach(each => each.open = true);
document.querySelectorAll("svg").forEach(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  boxes.forEach(([words, box], i) => {
    if (box.left < frame.left - 1 || box.right > frame.right + 1) wrong.push("cut off: " + words);
    boxes.slice(0, i).forEach(([other, b]) => {
      if (Math.min(box.right, b.right) - Math.max(box.left, b.left) > 2 &&
          Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top) > 4) wrong.push(words + " lies on " + other);
    });
  });
});
document.title = "wrong: " + JSON.stringify(wrong);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium to look with")
@pytest.mark.parametrize("width", [1240, 560])
def test_a_browser_shows_no_words_cut_off_or_on_top_of_one_another(report, tmp_path, width):
    write_page(report, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r"<title>(.*?)</title>", done.stdout).group(1) == "wrong: []"


def test_small_ratios_fit_their_chart(report, tmp_path):
    """A runtime that is thousands of times slower than the others: its numbers are longer."""
    slow = interval([0.00021] * 9)
    rows = [r if r.runtime != "onnxruntime" else dataclasses.replace(r, speed_up=slow) for r in report.rows]
    write_page(dataclasses.replace(report, rows=rows), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "0.00021x" in page
    ends = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="axis" text-anchor="end">0.001x<', page)
    assert ends and min(map(float, ends)) > 7 * len("0.001x")


def test_names_move_apart_no_more_than_needed():
    assert spread([10.0, 50.0], 14, 0, 100) == [10, 50]
    assert spread([52.0, 50.0, 51.0], 10, 0, 100) == [70, 50, 60]
    assert spread([99.0, 98.0], 10, 0, 100) == [100, 90]


@pytest.mark.parametrize(("values", "ticks"), [([1, 900], [1, 10, 100]), ([1, 2], [1, 1.2, 1.4, 1.6, 1.8, 2])])
def test_ticks_are_round_and_inside(values, ticks):
    found = spanning(values, 0, 100).ticks()
    assert set(ticks) <= set(found) and all(min(values) / 1.1 < t < max(values) * 1.1 for t in found)


def test_a_scale_is_logarithmic():
    scale = spanning([1.0, 100.0], 0, 200, margin=1)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0, 100, 200])
