"""Runtimes planted in a copy of the package: slow and wrong ones are found out, and who dies ends alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparsify
from sparsify.sources import export

SLOW = """
import time
from typing import final
from sparsify.runtimes.onnxruntime import OnnxRuntime as Base
from sparsify.runtimes import Runtime

@final
class Planted(Runtime):
    package = "onnxruntime"
    def load(self, path, threads):
        run = Base().load(path, threads)
        slow = path.name != "dense.onnx"  # zeros cost it time
        def delayed(inputs):
            if slow:
                time.sleep(0.002)
            return run(inputs)
        return delayed
"""
WRONG = SLOW.replace("return run(inputs)", "return run(inputs) * 1.01").replace("time.sleep(0.002)", "pass")
REMEMBERS = WRONG.replace(
    "return run(inputs) * 1.01",
    "kept.append(run(inputs)) if not kept else None\n            return kept[0]",
).replace("        def delayed", "        kept = []\n        def delayed")

DIES = """
import os, signal, sys
from typing import final
from sparsify.runtimes.onnxruntime import OnnxRuntime as Base
from sparsify.runtimes import Runtime

@final
class Planted(Runtime):
    package = "onnxruntime"
    def load(self, path, threads):
        run, calls = Base().load(path, threads), 0
        def dying(inputs):
            nonlocal calls
            calls += 1
            if calls > 300 and path.name != "dense.onnx":
                print("allocating", file=sys.stderr, flush=True)
                ENDING
            return run(inputs)
        return dying
"""


@pytest.fixture(scope="module")
def planted(finished_run, tmp_path_factory):
    """Bench a model in a planted runtime: planted(source code) -> finished process."""
    tmp_path = tmp_path_factory.mktemp("planted")
    export(finished_run, out=tmp_path / "m.onnx")
    package = tmp_path / "site" / "sparsify"
    shutil.copytree(Path(sparsify.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def bench(code: str, patience: float = 600.0) -> subprocess.CompletedProcess[str]:
        (package / "runtimes/planted.py").write_text(code)
        timing = (
            "--rounds",
            "6",
            "--launches",
            "1",
            "--seconds",
            "0.005",
            "--threads",
            "1",
            "--runtime",
            "planted",
            "--json",
        )
        command = [sys.executable, "-m", "sparsify", "bench", "m.onnx", *timing]
        protocol = Path(sparsify.__file__).parent / "bench/protocol.py"
        limit = ("PATIENCE = 600.0", f"PATIENCE = {patience}")
        (package / "bench/protocol.py").write_text(protocol.read_text().replace(*limit))
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return bench


def test_a_slow_runtime_is_told_apart(planted):
    done = planted(SLOW)
    assert done.returncode == 0, done.stderr
    row = next(row for row in json.loads(done.stdout)["rows"] if row["runtime"] == "planted")
    assert row["verdict"].startswith("sparsity makes it slower") and row["speed_up"]["high"] < 0.5
    assert row["against_best"]["high"] < 0.5 and row["sparse"]["p50_ms"] > 2


@pytest.mark.parametrize("code", [WRONG, REMEMBERS], ids=["one-percent-off", "answers-from-memory"])
def test_a_wrong_runtime_gets_no_time(planted, code):
    done = planted(code)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "planted computes something else from m.onnx than onnxruntime: relative error" in done.stderr
    report = json.loads(done.stdout)
    assert [row["runtime"] for row in report["rows"]] == ["onnxruntime"]
    assert all(place.startswith("planted on m.onnx") for place in report["wrong"]) and report["wrong"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "(SIGKILL, as when memory runs out): allocating"),
        ("sys.exit('no such kernel')", "(exit 1): no such kernel"),
    ],
    ids=["killed", "gives-up"],
)
def test_a_runtime_that_dies_late_ends_alone(planted, ending, words):
    """Its outputs are right and its warm-up is done when it goes."""
    done = planted(DIES.replace("ENDING", ending))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["runtime"] for row in report["rows"]] == ["onnxruntime"] and len(
        report["rows"][0]["sparse"]["rounds_ms"]
    ) == 6
    (why,) = [why for place, why in report["left_out"].items() if place.startswith("planted on m.onnx")]
    assert why == f"its process ended while it ran m.onnx {words}"


def test_a_runtime_that_hangs_ends_alone(planted):
    done = planted(DIES.replace("ENDING", "import time; time.sleep(3600)"), patience=12.0)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and [row["runtime"] for row in report["rows"]] == ["onnxruntime"]
    (why,) = [why for place, why in report["left_out"].items() if place.startswith("planted on m.onnx")]
    assert why == "it gave no answer within 12 seconds while it ran m.onnx"
