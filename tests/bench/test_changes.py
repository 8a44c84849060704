"""Two reports side by side: what changed, and what cannot be compared."""

from __future__ import annotations

import dataclasses

import pytest

from sparsify.bench.changes import compare_reports
from sparsify.bench.noise import Noise
from sparsify.bench.results import Measures, Report, Row
from sparsify.bench.statistics import Interval, interval
from sparsify.errors import BenchError

MACHINE = {"cpu": "a", "cores": 2, "isa": ["avx2"], "threads": 2}
LEVEL = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0]


def measures(rounds: list[float]) -> Measures:
    return Measures(
        calls=9, rounds_ms=rounds, p50_ms=1, p90_ms=1, p99_ms=1, quantiles_ms=[1.0] * 21, throughput=1, load_ms=1,
        first_ms=1, memory_bytes=None, stable=True,
    )  # fmt: skip


def report(pace: float = 1.0, rounds: int = 9, digest: str = "d", loop: float = 1.0, source: str = "m.onnx") -> Report:
    """One model whose sparse times are `pace` times those of LEVEL and whose dense times are twice LEVEL."""
    sparse, dense = [pace * ms for ms in LEVEL[:rounds]], [2 * ms for ms in LEVEL[:rounds]]
    row = Row(
        source, "onnxruntime", "onnxruntime 1", 0.9, 1, interval(sparse), interval(dense), interval([2.0]), "",
        threads=2, digest=digest, sparse=measures(sparse), dense=measures(dense),
    )  # fmt: skip
    return Report([row], {}, MACHINE, 1e-7, {"rounds": rounds}, noise=Noise([loop]))


@pytest.mark.parametrize(
    ("pace", "said"), [(1.0, "no change found"), (1.5, "slower"), (0.7, "faster"), (1.03, "no change found")]
)
def test_what_is_said_of_a_change(pace, said):
    found = compare_reports(report(), report(pace))
    sparse, dense = found.changes
    assert sparse.verdict == said and sparse.ratio.median == pytest.approx(pace)
    assert dense.verdict == "no change found" and dense.dense and dense.old_ms == 2.0
    assert sparse.ratio.low < pace < sparse.ratio.high and sparse.ratio.confidence >= 0.95
    assert found.only_old == found.only_new == []


def test_the_interval_holds_every_ratio_of_the_sides():
    """Both sides' 97.5 % intervals are the extremes of nine rounds here."""
    (sparse, _) = compare_reports(report(), report(1.5)).changes
    assert sparse.ratio.low == pytest.approx(1.5 * 0.98 / 1.02) and sparse.ratio.high == pytest.approx(
        1.5 * 1.02 / 0.98
    )


def test_few_rounds_say_nothing():
    assert compare_reports(report(), report(1.5, rounds=5)).changes[0].verdict == "too few rounds to say"


def test_a_slower_machine_is_not_a_slower_program():
    found = compare_reports(report(), report(1.2, loop=1.3))
    assert found.pace == pytest.approx(1.3) and found.changes[0].verdict == "no change found"
    assert compare_reports(report(), report(1.6, loop=1.3)).changes[0].verdict == "slower"


def test_a_model_is_known_by_its_masks_wherever_its_file_lies():
    found = compare_reports(report(), report(1.5, source="elsewhere/m.onnx"))
    assert found.changes[0].source == "elsewhere/m.onnx" and found.changes[0].verdict == "slower"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (dataclasses.replace(report(), machine={**MACHINE, "cpu": "b"}), "two machines (cpu a then, b now)"),
        (report(digest="e"), "m.onnx is another model in the new report"),
        (report(source="n.onnx", digest="e"), "nothing in common: the old one has m.onnx at 90.0% in onnxruntime"),
        (dataclasses.replace(report(), rows=[]), "the new one no rows"),
    ],
    ids=["machine", "masks", "name", "empty"],
)
def test_unlike_things_are_not_compared(new, message):
    with pytest.raises(BenchError) as caught:
        compare_reports(report(), new)
    assert message in str(caught.value)


def test_what_only_one_report_has_is_named():
    more = report(source="n.onnx", digest="e").rows
    new = dataclasses.replace(report(), rows=[*report().rows, *more])
    assert compare_reports(report(), new).only_new == ["n.onnx at 90.0% in onnxruntime, batch 1, threads 2"]
    assert compare_reports(new, report()).only_old == ["n.onnx at 90.0% in onnxruntime, batch 1, threads 2"]


def test_reports_of_earlier_versions_are_compared_by_their_extremes():
    """They have no digests, no threads in rows and no rounds, but the smallest and the largest of seven."""
    old_row = Row(
        "m.onnx", "onnxruntime", "onnxruntime 1", 0.9, 1, Interval(1.0, 0.98, 1.02), Interval(2.0, 1.9, 2.1),
        Interval(2.0, 1.9, 2.1), "",
    )  # fmt: skip
    old = Report([old_row], {}, MACHINE, 1e-7, {"rounds": 7})
    sparse, dense = compare_reports(old, report(1.5)).changes
    assert sparse.verdict == "slower" and sparse.ratio.low == pytest.approx(1.5 * 0.98 / 1.02)
    assert dense.verdict == "no change found" and sparse.threads == 2
