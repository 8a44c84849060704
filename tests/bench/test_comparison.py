"""The table of methods: equal steps, equal FLOPs, and a comparison that was interrupted."""

from __future__ import annotations

import json
import statistics

import pytest

from sparsify.bench.comparison import compare
from sparsify.errors import CheckpointError, RecipeError
from sparsify.recipe import load_recipe

SHORT = ["training.steps=60", "topology.delta_t=10", "training.evaluate_every=0.5"]


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_steps(tmp_path):
    seen = set()
    found = compare(
        load_recipe(None, SHORT), ["static", "RigL", "dense"], [0, 3], out=tmp_path / "all", device="cpu",
        watch=lambda method, seed, step, steps: seen.add((method, seed, steps)),
    )  # fmt: skip
    assert seen == {(method, seed, 60) for method in ("static", "rigl", "dense") for seed in (0, 3)}
    assert {row.method for row in found.rows} == {"static", "rigl", "dense"}
    assert [row.mean for row in found.rows] == sorted((row.mean for row in found.rows), reverse=True)
    for row in found.rows:
        assert row.mean == statistics.fmean(row.scores) and row.deviation == statistics.stdev(row.scores)
        assert row.steps == 60
    costs = {row.method: row.training_flops for row in found.rows}
    assert costs["static"] < costs["rigl"] < costs["dense"]


def test_equal_flops_of_every_method(tmp_path):
    """A method with cheaper steps gets more of them; whole steps and updates leave a few per cent."""
    recipe = load_recipe(None, [*SHORT, "training.steps=400", "topology.delta_t=5"])
    found = compare(recipe, None, [0], "flops", tmp_path / "all", device="cpu")
    costs = {row.method: row.training_flops for row in found.rows}
    assert {row.deviation for row in found.rows} == {None}
    for method, cost in costs.items():
        assert cost == pytest.approx(costs["static"], rel=0.12), method
    steps = {row.method: row.steps for row in found.rows}
    assert steps["dense"] < steps["rigl"] < steps["static"]


def test_nothing_is_trained_before_every_method_can_be(tmp_path):
    """At equal FLOPs pruning gets fewer steps than it needs for its first update: said before static is trained."""
    with pytest.raises(RecipeError, match="The method gradual_pruning reaches its sparsity by updates"):
        compare(load_recipe(None, SHORT), ["static", "gradual_pruning"], [0], "flops", tmp_path / "all", device="cpu")
    assert not (tmp_path / "all").exists()


def test_interrupted_comparison_goes_on(tmp_path):
    recipe, methods = load_recipe(None, SHORT), ["set", "static"]
    whole = compare(recipe, methods, [0], out=tmp_path / "all", device="cpu")
    before = files(tmp_path / "all/static-seed0")
    (tmp_path / "all/set-seed0/model.safetensors").unlink()
    again = compare(recipe, methods, [0], out=tmp_path / "all", device="cpu")
    assert again == whole
    assert files(tmp_path / "all/static-seed0") == before, "a finished run is not touched"
    assert (tmp_path / "all/set-seed0/model.safetensors").exists()


def test_runs_of_another_recipe_are_not_mixed_in(tmp_path):
    compare(load_recipe(None, SHORT), ["static"], [0], out=tmp_path / "all", device="cpu")
    with pytest.raises(CheckpointError, match=r"optimizer\.lr is 0\.05 there and 0\.1 now"):
        compare(load_recipe(None, [*SHORT, "optimizer.lr=0.1"]), ["static"], [0], out=tmp_path / "all", device="cpu")


def test_options_stay_with_the_recipes_own_method(tmp_path):
    recipe = load_recipe(None, [*SHORT, "topology.method=nm_rigl", "topology.options.m=4"])
    found = compare(recipe, ["nm-rigl", "static"], [0], out=tmp_path / "all", device="cpu")
    assert {row.method for row in found.rows} == {"nm_rigl", "static"}


@pytest.mark.parametrize(("methods", "seeds"), [(["set", "SET"], [0]), (["set"], [1, 1]), (["set"], [])])
def test_nothing_is_trained_twice(tmp_path, methods, seeds):
    with pytest.raises(RecipeError, match="Each method and each seed is trained once"):
        compare(load_recipe(None, SHORT), methods, seeds, out=tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_command(sparsify):
    changes = [part for change in SHORT for part in ("--set", change)]
    arguments = ["compare", "--methods", "static,rigl", "--seeds", "0,1", *changes]
    done = sparsify(*arguments)
    assert done.returncode == 0, done.stderr
    assert "static" in done.stdout and "±" in done.stdout and "equal steps, seeds 0, 1" in done.stdout
    again = json.loads(sparsify(*arguments, "--json").stdout)
    assert again["seeds"] == [0, 1] and len(again["rows"]) == 2
    wrong = sparsify("compare", "--seeds", "0,x")
    assert wrong.returncode == 2 and "--seeds 0,x is not a list of whole numbers" in wrong.stderr
