"""The command line, each time in a process of its own and an empty folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest

import sparsify as package


def test_the_straight_path(sparsify, tmp_path):
    """Train, inspect, export and bench, as a newcomer would."""
    trained = json.loads(sparsify("train", "--steps", "60", "--sparsity", "0.8", "--out", "run", "--json").stdout)
    assert trained["step"] == 60 and trained["sparsity"] == pytest.approx(0.8, abs=1e-3)
    inspected = json.loads(sparsify("inspect", "run", "--plot", "plot.svg", "--json").stdout)
    assert inspected["facts"]["method"] == "rigl" and (tmp_path / "plot.svg").stat().st_size > 1000
    exported = json.loads(sparsify("export", "run", "--json").stdout)
    assert exported["path"] == "run.onnx" and exported["digest"] == inspected["mask_digest"]
    assert json.loads(sparsify("inspect", "run.onnx", "--json").stdout)["nonzeros"] == inspected["nonzeros"]
    timing = ("--rounds", "2", "--launches", "1", "--seconds", "0.001", "--threads", "1")
    bench = json.loads(sparsify("bench", "run.onnx", *timing, "--json").stdout)
    assert {row["runtime"] for row in bench["rows"]} >= {"onnxruntime", "torch_eager"}
    assert bench["machine"]["threads"] == 1


def test_what_a_person_sees(sparsify):
    trained = sparsify("train", "--steps", "30", "--method", "set")
    assert trained.returncode == 0 and "Test accuracy" in trained.stdout
    assert "runs/lenet-300-100-digits-set-90-seed0/model.safetensors" in trained.stdout
    again = sparsify("train", "--steps", "30", "--method", "set")
    assert again.returncode == 2 and "exists and is not empty" in again.stderr
    resumed = sparsify("train", "--resume", "--out", "runs/lenet-300-100-digits-set-90-seed0")
    assert resumed.returncode == 0, resumed.stderr
    inspected = sparsify("inspect", "runs/lenet-300-100-digits-set-90-seed0")
    assert "300x64" in inspected.stdout and "Mask digest" in inspected.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--sparsity", "1.2"], "'topology.sparsity' = 1.2 is not possible: input should be less than 1"),
        (["train", "--method", "rugl"], "There is no method called 'rugl'. Did you mean 'rigl'"),
        (["train", "wrn-22-2-cifar"], "Did you mean 'wrn-22-2-cifar10'"),
        (["train", "--epochs", "1", "--steps", "2"], "Give --epochs or --steps, not both."),
        (["train", "--set", "optimizer.lrr=1"], "There is no key in [optimizer] called 'lrr'. Did you mean 'lr'?"),
        (["inspect", "nothing"], "There is no run folder, model file or recipe called 'nothing'"),
        (
            ["export", "lenet-300-100-digits", "--format", "onxx"],
            "There is no format called 'onxx'. Did you mean 'onnx'",
        ),
        (["bench", "lenet-300-100-digits", "--runtime", "tenssor"], "There is no runtime called 'tenssor'"),
        (["bench", "missing.onnx"], "There is no file missing.onnx. Check the path."),
    ],
)
def test_errors_are_one_message_without_a_traceback(sparsify, arguments, message, tmp_path):
    done = sparsify(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    command = [sys.executable, "-m", "sparsify", "train", "--epochs", "2000", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "To continue: sparsify train --resume --out run" in errors and "Traceback" not in errors
    assert (tmp_path / "run/checkpoint.pt").is_file()


def test_help_and_version(sparsify):
    assert sparsify("--version").stdout.strip() == f"sparsify {package.__version__}"
    for command in ("train", "inspect", "export", "bench"):
        text = sparsify(command, "--help").stdout
        assert "--json" in text and "--set" in text


def test_the_distribution_carries_the_version_of_the_package():
    assert metadata.version("sparsify-rigl") == package.__version__


def test_everything_public_can_be_reached():
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        _ = package.nonsense
