"""`sparsify run` and `sparsify bench --explain`."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from sparsify.cli.running import run_model
from sparsify.errors import EngineError
from sparsify.sources import export


@pytest.fixture(scope="module")
def model(finished_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "digits.onnx"
    export(finished_run, "onnx", path)
    return path


def test_outputs_are_those_of_onnxruntime(model, tmp_path):
    inputs = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    found = run_model(model, tmp_path / "x.npy", tmp_path / "y.npy", threads=1)
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)
    assert found["outputs"]["logits"]["shape"] == [3, 10]
    assert found["outputs"]["logits"]["first"] == pytest.approx(expected[0].tolist(), rel=1e-3, abs=1e-4)


def test_inputs_that_do_not_fit(model, tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(EngineError, match=r"text.npy is not a readable NumPy file"):
        run_model(model, tmp_path / "text.npy", None, 1)
    np.save(tmp_path / "shape.npy", np.zeros((1, 5), np.float32))
    with pytest.raises(EngineError, match=r"was given \(1, 5\)"):
        run_model(model, tmp_path / "shape.npy", None, 1)
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(EngineError, match="holds several arrays"):
        run_model(model, tmp_path / "two.npz", None, 1)


def test_the_command(sparsify, model, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.float32))
    done = sparsify("run", str(model), "--input", "x.npy", "--out", "y.npy", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert "logits [1, 10]" in done.stdout and np.load(tmp_path / "y.npy").shape == (1, 10)
    explained = json.loads(sparsify("bench", str(model), "--explain", "--threads", "1", "--json").stdout)
    linear = [row for row in explained[str(model)] if row["operation"] == "Linear"]
    assert len(linear) == 3 and all(row["kernel"] and 0 < row["density"] < 1 for row in linear)
    assert "Linear" in sparsify("bench", str(model), "--explain", "--threads", "1").stdout
