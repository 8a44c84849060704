"""The benchmark: wrong results have no speed, and what is said follows from what was measured."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify import registry
from sparsify.bench.benchmark import benchmark
from sparsify.bench.machine import describe_machine
from sparsify.bench.protocol import Contender, compare_outputs, relative_error, running, take_turns
from sparsify.bench.subjects import prepare
from sparsify.errors import BenchError, UnknownNameError
from sparsify.runtimes import load_runtime
from sparsify.sources import export

QUICK = {"rounds": 2, "launches": 1, "seconds": 0.001, "threads": 1}


@pytest.fixture(scope="module")
def model(finished_run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "digits.onnx"
    export(finished_run, "onnx", path)
    return path


def test_every_runtime_agrees_and_is_timed_beside_the_dense_twin(model):
    turns = []
    report = benchmark([model], batch=2, watch=turns.append, **QUICK)
    timed = {row.runtime for row in report.rows}
    assert timed | set(report.left_out) == set(registry.names("runtimes"))
    assert {"onnxruntime", "torch_eager"} <= timed
    for row in report.rows:
        assert row.sparsity == pytest.approx(0.9, abs=1e-3)
        assert 0 < row.sparse_ms.low <= row.sparse_ms.median <= row.sparse_ms.high
        assert row.speed_up.low <= row.speed_up.median <= row.speed_up.high
        assert "x, between" in row.verdict
    assert report.largest_error < 1e-4
    written, *timed_turns = turns
    assert (written.done, written.total, written.runtime) == (1, 1, "")
    assert [turn.done for turn in timed_turns] == list(range(1, timed_turns[-1].total + 1))
    assert [turn.median_ms is None for turn in timed_turns] == [i < 2 * len(timed) for i in range(len(timed_turns))]


def test_rounds_are_spread_over_processes(model):
    turns = []
    report = benchmark([model], ["onnxruntime"], rounds=3, launches=2, seconds=0.001, threads=1, watch=turns.append)
    row = report.rows[0]
    assert len(row.sparse.rounds_ms) == len(row.dense.rounds_ms) == 3 and report.protocol["launches"] == 2
    assert turns[-1].done == turns[-1].total == 2 * (3 + 2)  # each process warms up
    few = benchmark([model], ["onnxruntime"], rounds=1, launches=3, seconds=0.001, threads=1)
    assert few.protocol["launches"] == 1


def test_a_recipe_and_a_run_can_be_timed(finished_run):
    report = benchmark(["lenet-300-100-digits", finished_run], ["onnxruntime"], changes=[], **QUICK)
    assert [row.sparsity for row in report.rows] == pytest.approx([0.9, 0.9], abs=1e-3)


def third_party_model(path: Path) -> None:
    """A Gemm and a MatMul whose weights are stored the other way round, half of them zero."""
    random = np.random.default_rng(0)
    first, second = (random.standard_normal(s).astype(np.float32) for s in ((8, 16), (16, 4)))
    first[::2], second[::2] = 0, 0
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["y"])],
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_a_model_of_another_program(tmp_path):
    third_party_model(tmp_path / "other.onnx")
    report = benchmark([tmp_path / "other.onnx"], **QUICK)
    assert report.rows[0].runtime == "onnxruntime" and report.rows[0].sparsity == 0.5
    reasons = [why for what, why in report.left_out.items() if what.startswith("torch_eager on")]
    assert reasons == ["the file was not written by sparsify, so the torch module is not known"]


def test_a_wrong_runtime_is_an_error_and_not_a_time(model, tmp_path):
    """Two files under one name: the second contender computes something else."""
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        folder.mkdir()
        shutil.copy(model, folder / "model.onnx")
    proto = onnx.load(model)
    bias = next(i for i in proto.graph.initializer if i.name == "5.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.1, bias.name))
    onnx.save(proto, wrong / "model.onnx")
    contenders = [Contender("onnxruntime", folder / "model.onnx", 1) for folder in (right, wrong)]
    with running(contenders):
        contenders[1].model = contenders[0].model
        assert compare_outputs(contenders, np.ones((1, 1, 8, 8), np.float32)) == 0
        assert contenders[0].failure is None and contenders[1].wrong
        assert re.search("computes something else .* relative error", contenders[1].failure)
    assert all(contender.process.poll() is not None for contender in contenders)


def test_a_runtime_that_dies_leaves_its_last_words(model, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    contenders = [Contender("onnxruntime", path, 1) for path in (tmp_path / "broken.onnx", model)]
    with running(contenders):
        compare_outputs(contenders, np.ones((1, 1, 8, 8), np.float32))
    dead, alive = contenders
    assert re.fullmatch(r"its process ended while it ran broken.onnx \(exit 1\): .*INVALID_PROTOBUF.*", dead.failure)
    assert alive.failure is None and len(alive.first) == 1


def test_without_the_reference_nothing_can_be_compared(model, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    contenders = [Contender("onnxruntime", tmp_path / "broken.onnx", 1), Contender("sparsify_cpu", model, 1)]
    with running(contenders):
        compare_outputs(contenders, np.ones((1, 1, 8, 8), np.float32))
    assert contenders[1].failure == "there is no output of onnxruntime to hold its own against"


def test_everyone_gets_the_same_number_of_turns(model):
    contenders = [Contender("onnxruntime", model, 1) for _ in range(3)]
    with running(contenders):
        compare_outputs(contenders, np.ones((1, 1, 8, 8), np.float32))
        turns = list(take_turns(contenders, rounds=2, seconds=0.0))
    assert [sorted(map(contenders.index, turns[i : i + 3])) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert turns[3:6] != turns[6:9]  # nobody always follows the same neighbour
    assert [len(c.rounds) for c in contenders] == [2, 2, 2]
    assert all(len(times) == 3 and min(times) > 0 for c in contenders for times in c.rounds)


def test_relative_error():
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0
    assert relative_error(np.array([3.0, 0.0]), np.array([0.0, 4.0])) == pytest.approx(1.25)
    assert relative_error(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative_error(np.ones(2), np.ones(3)) == np.inf
    huge = np.full(2, 1e30, np.float32)
    assert relative_error(huge, huge) == 0 and relative_error(huge * 2, huge) == pytest.approx(1)


def test_outputs_of_a_network_without_training_depend_on_its_inputs(tmp_path):
    """Else a runtime could compute anything: without statistics of its own MobileNet answers with its last bias."""
    subject = prepare("mobilenet-v1-cifar10", tmp_path / "model", ["topology.sparsity=0.95"])
    for path in (subject.sparse, subject.dense):
        first, second = (load_runtime("onnxruntime").load(path, 1)(subject.sample(1, seed)) for seed in (0, 1))
        assert relative_error(first, second) > 0.01


def test_bad_questions(model):
    with pytest.raises(UnknownNameError, match="no runtime called 'onnxrt'. Did you mean 'onnxruntime'"):
        benchmark([model], ["onnxrt"])
    for bad in ({"rounds": 0}, {"minutes": 0}, {"seconds": 0}):
        with pytest.raises(BenchError, match="must be at least 1"):
            benchmark([model], **bad)


def test_the_machine_is_described():
    machine = describe_machine(2)
    assert machine["threads"] == 2 and machine["cores"] >= 1 and machine["cpu"]


@pytest.mark.parametrize("name", registry.names("runtimes"))
def test_every_runtime_says_whether_it_can_run(name):
    runtime = load_runtime(name)
    missing = runtime.missing()
    assert missing is None or re.search(
        "not installed|no CUDA device|ExecutionProvider|no C\\+\\+ compiler|which is no file", missing
    )
    if missing is None:
        assert runtime.package in runtime.version()
