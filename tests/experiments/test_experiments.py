"""Every experiment's script runs, goes on where it stopped, and writes a page from its results."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify.recipe import load_recipe

SCRIPTS = Path(__file__).parent.parent.parent / "experiments"
TINY = ["--set", "training.steps=4", "--set", "training.evaluate_every=1.0", "--set", "topology.delta_t=2"]


def start(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    places = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *places, *arguments]
    return subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=300)


def call(script: str, folder: Path, *arguments: str) -> str:
    done = start(script, folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_table_fills_itself_and_goes_on(real_data, tmp_path):
    real_data("mnist")
    cells = ["--columns", "98 % in 10 epochs", "--rows", "static,RigL,RigL from static's solution"]
    first = call("mnist", tmp_path, *cells, *TINY, "--seeds", "0")
    assert first.count("seed 0") == 3
    second = call("mnist", tmp_path, *cells, *TINY, "--seeds", "0,1")
    assert "seed 0" not in second and second.count("seed 1") == 3
    stored = tmp_path / "results" / "mnist.json"
    found = json.loads(stored.read_text())["98 % in 10 epochs"]
    assert {row: sorted(seeds) for row, seeds in found.items()} == {
        "static": ["0", "1"], "RigL": ["0", "1"], "RigL from static's solution": ["0", "1"],
    }  # fmt: skip
    accuracies = [100 * found["RigL"][seed]["test_accuracy"] for seed in "01"]
    page = (tmp_path / "results" / "RESULTS.md").read_text()
    section = page[page.index("## MNIST") :]
    row = next(line for line in section.splitlines() if line.startswith("| RigL |"))
    assert f"| {sum(accuracies) / 2:.2f} ± " in row and row.count("*not run*") == 3
    assert re.search(
        r"Not run\*, 95 % in 50 epochs: all rows. It would take about \d+ minutes of one core a run", section
    )
    assert "RigL is " in page and "*not run*: `python experiments/landscape.py`" in page
    stored.unlink()
    other = start("mnist", tmp_path, *cells, *TINY, "--seeds", "0", "--set", "topology.alpha=0.1")
    assert other.returncode != 0 and "another recipe: topology.alpha is 0.3 there and 0.1 now" in other.stderr


def test_a_row_that_computes_with_its_nonzeros_only(real_data, tmp_path):
    real_data("mnist")
    call("sparse_accuracy", tmp_path, *TINY, "--seeds", "0")
    found = json.loads((tmp_path / "results" / "sparse_accuracy.json").read_text())["98 % in 10 epochs"]
    masked, sparse = (found[row]["0"]["unevenness"] for row in ("masked", "sparse"))
    assert sparse == pytest.approx(masked, rel=0.05)  # of the same connections, but for ties
    packed = tmp_path.rglob("model.sparse.safetensors")
    assert [path.parent.parent.name for path in packed] == ["sparse"]


def test_the_landscape(real_data, tmp_path):
    real_data("mnist")
    call("landscape", tmp_path, *TINY, "--steps", "2", "--samples", "50")
    page = (tmp_path / "results" / "RESULTS.md").read_text()
    assert "| cubic | sparse | " in page and "| RigL from static | " in page
    assert (tmp_path / "results" / "landscape.svg").is_file()


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS.glob("[!_]*.py")))
def test_every_script_explains_itself(script):
    has_results = "_experiment" in (SCRIPTS / f"{script}.py").read_text()
    done = subprocess.run([sys.executable, str(SCRIPTS / f"{script}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("--results" in done.stdout) == has_results


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS.glob("[!_]*.py")))
def test_a_column_that_names_a_sparsity_has_it(script, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    experiment = getattr(importlib.import_module(script), "EXPERIMENT", None)
    if experiment is None:
        pytest.skip("it is no table of runs")
    for column, changes in experiment.columns.items():
        if named := re.match(r"([\d.]+) %", column):
            recipe = load_recipe(experiment.recipe, [change for change in changes if "{" not in change])
            assert recipe.topology.sparsity == float(named[1]) / 100, column


def test_the_published_page_is_what_the_results_give(tmp_path):
    """RESULTS.md is generated: changing a number by hand, or results without the page, is found here."""
    published = SCRIPTS.parent / "RESULTS.md"
    before = published.read_bytes()
    done = subprocess.run([sys.executable, str(SCRIPTS / "mnist.py"), "--report"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert published.read_bytes() == before


def test_step_times_are_ratios_of_one_run():
    command = [sys.executable, str(SCRIPTS / "step_time.py"), "lenet-300-100-digits", "--rounds", "1", "--json"]
    done = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout)
    expected = ((line["delta_t"] - 1) * line["sparse_ms"] + line["update_ms"]) / (line["delta_t"] * line["dense_ms"])
    assert line["ratio"] == pytest.approx(expected) and 0 < line["lowest"] <= line["highest"]
