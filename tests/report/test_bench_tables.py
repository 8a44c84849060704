"""The benchmark in a terminal: what was found, in columns that fit."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from sparsify.bench.benchmark import benchmark
from sparsify.bench.noise import Noise
from sparsify.bench.results import BreakEven
from sparsify.report.bench_tables import bench_table, notes
from sparsify.sources import export

QUICK = {"rounds": 2, "launches": 1, "seconds": 0.001, "threads": 1}


def shown(table: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "m.onnx"
    export(finished_run, out=path)
    return benchmark([path], ["onnxruntime"], layers=True, **QUICK)


def brief(row):
    """The row with times of some microseconds, as a fast machine has them for so small a model."""
    sparse = dataclasses.replace(row.sparse, p99_ms=0.01234)
    sparse_ms = dataclasses.replace(row.sparse_ms, median=0.00656, low=0.0052, high=0.0079)
    dense_ms = dataclasses.replace(row.dense_ms, median=0.00819, low=0.0065, high=0.0099)
    return dataclasses.replace(row, sparse=sparse, sparse_ms=sparse_ms, dense_ms=dense_ms)


def test_the_table_says_what_was_found(report):
    text = shown(bench_table(report, layers=True))
    row = report.rows[0]
    said = " ".join(text.split())
    assert row.verdict.split(" (")[0] in said
    assert f"onnxruntime sparse is {row.against_best.median:.2f}x as fast as onnxruntime dense" in said
    assert "the slowest of" not in shown(bench_table(report))
    assert "peak memory" in text and "the slowest of" in said and "FusedGemm" in text
    assert "onnxruntime" in text and "dense twin" in text and "…" not in text


def test_a_grid_fits_a_hundred_columns_and_breaks_even_in_words(report):
    row = brief(report.rows[0])
    rows = [
        dataclasses.replace(row, sparsity=s, batch=b, threads=t, runtime="torch_eager_long")
        for s in (0.5, 0.9, 0.99)
        for b in (1, 16)
        for t in (1, 2)
    ]
    text = shown(bench_table(dataclasses.replace(report, rows=rows)), 100)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert text.count("torch_eager_long") >= len(rows) and "too few rounds" not in text


def test_a_sweep_says_from_where_on_zeros_pay(report):
    pays = BreakEven("m.onnx", "sparsify_cpu", 1, 2, 0.31, 0.72)
    found = [pays, BreakEven("m.onnx", "onnxruntime", 1, 2, None, None)]
    lines = shown(bench_table(dataclasses.replace(report, break_even=found))).splitlines()
    (engine,) = [line.split() for line in lines if "sparsify_cpu" in line and "m.onnx" in line]
    assert engine == ["m.onnx", "sparsify_cpu", "from", "31%", "on", "from", "72%", "on"]
    assert any(line.split() == ["m.onnx", "onnxruntime", "never", "never"] for line in lines)


def test_what_did_not_settle_is_one_sentence_for_each_model(report):
    restless = [dataclasses.replace(row, sparse=dataclasses.replace(row.sparse, stable=False)) for row in report.rows]
    (said,) = [note for note in notes(dataclasses.replace(report, rows=restless * 3)) if "settle" in note]
    assert said.endswith("did not settle in the warm-up in onnxruntime.")


def test_columns_stay_narrow_however_restless_the_times_are(report):
    row = brief(report.rows[0])
    wild = dataclasses.replace(row, speed_up=dataclasses.replace(row.speed_up, median=1.0, low=0.5, high=900.0))
    text = shown(bench_table(dataclasses.replace(report, rows=[wild])))
    assert "1.00x ±>99%" in text and "…" not in text


def with_rounds(row, rounds):
    sparse, dense = (dataclasses.replace(side, rounds_ms=rounds) for side in (row.sparse, row.dense))
    return dataclasses.replace(row, sparse=sparse, dense=dense)


def test_a_noisy_machine_is_called_so(report):
    rows = [with_rounds(row, [1.0, 1.4]) for row in report.rows]
    quiet = dataclasses.replace(report, rows=rows, noise=Noise([1.0, 1.05], others=0.05, stolen=0.0))
    assert "noisy" not in shown(bench_table(quiet))
    restless = dataclasses.replace(quiet, rows=[with_rounds(row, [1.0, 1.7]) for row in report.rows])
    assert "rounds of the same thing differ by up to 1.7x" in " ".join(shown(bench_table(restless)).split())
    noisy = dataclasses.replace(report, noise=Noise([1.0, 1.5], others=0.4, stolen=0.1))
    said = " ".join(shown(bench_table(noisy)).split())
    assert "between 1x and 1.50x of its time; other programs took 40% of the CPU time; the hypervisor gave 10%" in said
