"""Sweeps over sparsity, batch and threads, and what is read off them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from sparsify.bench.benchmark import benchmark
from sparsify.bench.break_even import break_even
from sparsify.bench.results import Row, read_report
from sparsify.bench.statistics import Interval
from sparsify.errors import BenchError, RecipeError
from sparsify.files import write_bytes
from sparsify.sources import export

QUICK = {"rounds": 2, "launches": 1, "seconds": 0.001}


@pytest.fixture(scope="module")
def swept():
    return benchmark(
        ["lenet-300-100-digits"], ["sparsify-cpu"], sparsities=[0, 0.8], batch=[1, 3], threads=[1], layers=True, **QUICK
    )


def test_every_point_of_the_grid_is_timed_with_every_runtime(swept):
    points = [(round(row.sparsity, 2), row.batch, row.threads, row.runtime) for row in swept.rows]
    assert points == [
        (s, b, 1, runtime) for s in (0.0, 0.8) for b in (1, 3) for runtime in ("onnxruntime", "sparsify_cpu")
    ]
    assert len({row.digest for row in swept.rows}) == 2
    assert [(each.runtime, each.batch) for each in swept.break_even] == [
        (runtime, b) for b in (1, 3) for runtime in ("onnxruntime", "sparsify_cpu")
    ]


def test_measures_agree_with_one_another(swept):
    for row in swept.rows:
        for measures, ms in ((row.sparse, row.sparse_ms), (row.dense, row.dense_ms)):
            assert np.median(measures.rounds_ms) == ms.median and len(measures.rounds_ms) == 2
            assert measures.quantiles_ms == sorted(measures.quantiles_ms) and len(measures.quantiles_ms) == 21
            assert measures.quantiles_ms[10] == measures.p50_ms <= measures.p90_ms <= measures.p99_ms
            assert measures.calls >= 6
            mean_ms = 1e3 * row.batch / measures.throughput
            assert measures.quantiles_ms[0] <= mean_ms <= measures.quantiles_ms[-1]
            assert measures.load_ms > 0 and measures.first_ms > 0
            assert measures.memory_bytes is None or measures.memory_bytes > 10e6  # numpy alone takes more
        assert row.against_best is not None and row.best_dense in ("onnxruntime", "sparsify_cpu")
        assert row.file_bytes > 50_000


def test_layers_are_told_by_the_runtimes_that_know_them(swept):
    for row in swept.rows:
        layers = row.sparse.layers
        assert sum(layer.ms for layer in layers) > 0
        assert sum("Gemm" in each.operation or "Linear" in each.operation for each in layers) == 3
    engine = next(row for row in swept.rows if row.runtime == "sparsify_cpu" and row.sparsity > 0.5)
    assert any(each.density is not None and each.density < 0.5 for each in engine.sparse.layers)


def test_a_report_is_read_as_it_was_written(swept, tmp_path):
    from pydantic import TypeAdapter

    from sparsify.bench.results import Report

    write_bytes(tmp_path / "report.json", TypeAdapter(Report).dump_json(swept))
    assert read_report(tmp_path / "report.json") == swept


def test_a_report_of_an_earlier_version_is_read(tmp_path):
    """Written by version 0.1.0 before rows knew threads, digests and more than medians."""
    (tmp_path / "old.json").write_text(
        '{"rows": [{"source": "m.onnx", "runtime": "onnxruntime", "version": "onnxruntime 1.32.0", "sparsity": 0.9,'
        '"batch": 1, "sparse_ms": {"median": 2.0, "low": 1.9, "high": 2.1}, "dense_ms": {"median": 2.0, "low": 1.9,'
        '"high": 2.1}, "speed_up": {"median": 1.0, "low": 0.9, "high": 1.1}, "verdict": "no"}], "left_out": {},'
        '"machine": {"cpu": "c", "cores": 2, "isa": [], "threads": 2}, "largest_error": 1e-7,'
        '"protocol": {"batch": 1, "threads": 2, "rounds": 7, "seconds": 0.3, "reference": "onnxruntime"}}'
    )
    report = read_report(tmp_path / "old.json")
    assert report.rows[0].sparse is None and report.rows[0].sparse_ms.median == 2.0 and report.noise is None


@pytest.mark.parametrize("content", ["{", '{"rows": 3}', "[]"])
def test_what_is_no_report_is_refused(tmp_path, content):
    (tmp_path / "no.json").write_text(content)
    with pytest.raises(BenchError, match="is not a report of sparsify bench"):
        read_report(tmp_path / "no.json")
    with pytest.raises(BenchError, match=r"none.json cannot be read \(No such file"):
        read_report(tmp_path / "none.json")


def row(sparsity: float, own: float, best: float, spread: float = 0.01) -> Row:
    def ratio(value: float) -> Interval:
        return Interval(value, value - spread, value + spread, 0.96)

    ms = Interval(1.0, 1.0, 1.0, 0.96)
    return Row("m", "r", "r 1", sparsity, 1, ms, ms, ratio(own), "", threads=1, against_best=ratio(best))


def test_break_even_lies_where_the_times_cross():
    """Where the time falls to that of a speed-up that is more than noise, on the line from 1.25 at 0 to 0.5 at 90 %."""
    (found,) = break_even([row(0.9, 2.0, 0.5), row(0.0, 0.8, 0.2)])
    assert 1.25 - found.over_own * 0.75 / 0.9 == pytest.approx(1 / 1.02) and found.over_best is None


def test_break_even_needs_all_that_follow_to_be_faster():
    (found,) = break_even([row(0.0, 1.0, 1.5), row(0.5, 1.5, 1.5), row(0.8, 0.5, 1.5), row(0.9, 2.0, 1.5)])
    assert 0.8 < found.over_own < 0.9 and found.over_best == 0.0


def test_a_doubtful_gain_is_none():
    (found,) = break_even([row(0.0, 1.0, 1.0), row(0.9, 1.3, 1.3, spread=0.4)])
    assert found.over_own is None and found.over_best is None
    assert break_even([row(0.9, 2.0, 2.0)]) == []  # one sparsity is no sweep


def test_a_sweep_is_of_recipes(finished_run, tmp_path):
    export(finished_run, out=tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="settings can be changed for recipes only"):
        benchmark([tmp_path / "m.onnx"], ["onnxruntime"], sparsities=[0.5, 0.9], **QUICK)


def test_what_was_measured_is_saved_after_each_place_and_the_clock_ends_it():
    saved = []
    report = benchmark(
        ["lenet-300-100-digits"],
        ["onnxruntime"],
        sparsities=[0.5, 0.9],
        batch=[1, 2],
        threads=1,
        save=saved.append,
        **QUICK,
    )
    assert [len(each.rows) for each in saved] == [1, 2, 3, 4] and saved[-1] == report
    assert [len(each.unfinished) for each in saved] == [3, 2, 1, 0]
    assert saved[0].unfinished[0] == "lenet-300-100-digits 50% batch 2 threads 1"
    with pytest.raises(BenchError, match="Nothing could be timed"):
        benchmark(["lenet-300-100-digits"], ["onnxruntime"], minutes=1e-9, **QUICK)


def test_an_interrupt_ends_with_what_was_measured(tmp_path):
    grid = ["--sparsity", "0.5,0.9", "--batch", ",".join(map(str, range(1, 50))), "--rounds", "2", "--launches", "1"]
    command = [sys.executable, "-m", "sparsify", "bench", "lenet-300-100-digits", "--runtime", "onnxruntime", *grid]
    options = ["--seconds", "0.001", "--json", "--csv", "rows.csv"]
    # A shell's background jobs ignore the interrupt and hand that down: a test run may be one.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*command, *options], cwd=tmp_path, preexec_fn=listen, **pipes)
    while not (tmp_path / "rows.csv").is_file() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate()
    assert process.returncode == 130 and b"Traceback" not in said
    report = json.loads(printed)
    assert len(report["rows"]) >= 1 and len(report["rows"]) + len(report["unfinished"]) == 2 * 49
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 2 * len(report["rows"])


def test_an_empty_grid(finished_run):
    with pytest.raises(BenchError, match="at least one batch"):
        benchmark([finished_run], batch=[])
