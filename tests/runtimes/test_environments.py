"""Runtimes in environments of their own, and models in the form of an older standard."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from sparsify.bench.benchmark import benchmark
from sparsify.formats._onnx_older import write_older
from sparsify.registry import names
from sparsify.runtimes import load_runtime
from sparsify.sources import export


def test_a_runtime_runs_in_the_environment_that_is_named(finished_run, tmp_path, monkeypatch):
    """A shell script stands for the other interpreter: it leaves a mark and goes on as this one."""
    model = export(finished_run, out=tmp_path / "m.onnx").path
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\necho run >> {tmp_path}/mark\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("SPARSIFY_ONNXRUNTIME_PYTHON", str(other))
    report = benchmark([model], ["onnxruntime"], rounds=1, seconds=0.001, threads=1)
    assert [row.runtime for row in report.rows] == ["onnxruntime"] and report.largest_error == 0
    assert (tmp_path / "mark").read_text() == "run\n" * 2


@pytest.mark.parametrize("name", names("runtimes"))
def test_an_environment_that_is_not_there(name, monkeypatch):
    """Every runtime can have one, those of CUDA too."""
    variable = f"SPARSIFY_{name.upper()}_PYTHON"
    monkeypatch.setenv(variable, "/nowhere/bin/python")
    assert load_runtime(name).missing() == f"{variable} names /nowhere/bin/python, which is no file"
    monkeypatch.setenv(variable, __file__)  # a file, whatever it may be: what it lacks shows when it is started
    assert load_runtime(name).missing() is None


def test_what_takes_minutes_is_timed_only_where_it_is_named(finished_run, tmp_path):
    model = export(finished_run, out=tmp_path / "m.onnx").path
    report = benchmark([model], rounds=1, seconds=0.001, threads=1)
    assert "--runtime" in report.left_out["torch_compile"]


@pytest.mark.parametrize("source", ["lenet-300-100-digits", "wrn-22-2-cifar10"])
def test_an_older_standard(source, tmp_path):
    """Opset 17 and IR 9, every attribute one of that opset, weights dense: and the same outputs."""
    new = export(source, out=tmp_path / "new.onnx", encoding="packed").path
    old = write_older(new, tmp_path / "old.onnx", 17, 9)
    proto = onnx.load(old)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.opset_import[0].version, proto.ir_version) == (17, 9)
    assert not {"ScatterElements", "ConstantOfShape"} & {node.op_type for node in proto.graph.node}
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (new, old)]
    shape = [2, *sessions[0].get_inputs()[0].shape[1:]]
    inputs = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    left, right = (session.run(None, inputs)[0] for session in sessions)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5 * np.abs(left).max())
