"""Methods compared on one recipe: every method with every seed, at equal steps or at equal training FLOPs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsify.data import data_info
from sparsify.errors import RecipeError
from sparsify.recipe import Recipe, parse_recipe
from sparsify.registry import find, names
from sparsify.training import run_folder
from sparsify.training.evaluate import BITS, score_name
from sparsify.training.loop import train
from sparsify.training.metrics import read_metrics
from sparsify.training.plan import Plan, plan

Equal = Literal["steps", "flops"]
Watch = Callable[[str, int, int, int], None]  # method, seed, steps done, steps in all


@dataclass(frozen=True)
class ComparisonRow:
    """One method."""

    method: str
    scores: list[float]  # one for each seed
    mean: float
    deviation: float | None  # sample standard deviation over seeds; None for a single seed
    sparsity: float  # at the end, mean over seeds
    steps: int
    training_flops: float  # as trained, mean over seeds
    inference_flops: int  # of one sample, when training is over


@dataclass(frozen=True)
class Comparison:
    """Rows in the order of their mean score, best first."""

    recipe: str
    score: str  # test_accuracy, a share of the test set, or test_bits_per_character
    at_equal: Equal
    sparsity: float  # that the recipe asks for
    seeds: list[int]
    folder: str
    rows: list[ComparisonRow]


def compare(
    recipe: Recipe,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    at_equal: Equal = "steps",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    watch: Watch | None = None,
) -> Comparison:
    """Train the recipe by each method with each seed and set their scores side by side.

    methods: by default all there are. at_equal: "steps" trains all for as long as the recipe says; "flops"
    gives all the training FLOPs that the recipe's own method is planned to take, so that a dense network
    trains for fewer steps. out: folder with a run for each, by default `runs/compare-NAME-AT`. Runs that
    stand there are kept, and continued where they were interrupted.
    Raises SparsifyError; CheckpointError where a run in `out` was of another recipe.
    """
    chosen = [find("methods", name) for name in methods] if methods else names("methods")
    if not seeds or len(set(seeds)) < len(seeds) or len(set(chosen)) < len(chosen):
        raise RecipeError("Each method and each seed is trained once: name at least one of both, and none twice.")
    folder = Path(out) if out is not None else Path("runs") / f"compare-{recipe.name}-{at_equal}"
    variants = {method: [_variant(recipe, method, seed, at_equal) for seed in seeds] for method in chosen}
    info = data_info(recipe.data.name, recipe.data.options)
    costs = {method: plan(each[0], info) for method, each in variants.items()}
    rows = []  # nothing is trained before every method is known to be able to
    for method, each in variants.items():
        lines = [_line(variant, folder, data, device, watch) for variant in each]
        rows.append(_row(method, costs[method], lines))
    score = score_name(lines[0])
    rows.sort(key=lambda row: row.mean if score == BITS else -row.mean)
    return Comparison(recipe.name, score, at_equal, recipe.topology.sparsity, list(seeds), str(folder), rows)


def _variant(recipe: Recipe, method: str, seed: int, at_equal: Equal) -> Recipe:
    """The recipe by another method; options belong to the recipe's own method and stay with it."""
    table = recipe.model_dump(exclude_none=True)
    own = find("methods", recipe.topology.method) == method
    table["topology"] |= {"method": method, "options": recipe.topology.options if own else {}}
    table["training"]["seed"] = seed
    if at_equal == "steps":
        return parse_recipe(table)
    info = data_info(recipe.data.name, recipe.data.options)
    budget = plan(recipe, info).training_flops
    for _ in range(3):  # the average cost of a step depends on the length a little, through whole updates
        cost = plan(parse_recipe(table), info)
        for key in ("epochs", "multiplier"):
            table["training"].pop(key, None)
        table["training"]["steps"] = max(1, round(budget / (cost.step_flops * cost.batch_size)))
    return parse_recipe(table)


def _line(
    recipe: Recipe, folder: Path, data: str | Path | None, device: str, watch: Watch | None
) -> dict[str, Any]:  # fmt: skip
    """The last line of the run's metrics, trained now where it is not finished."""
    method, seed = recipe.topology.method, recipe.training.seed
    run = folder / f"{method}-seed{seed}"
    if run_folder.model_file(run).is_file():
        run_folder.reopen(run, recipe)
        return read_metrics(run)[-1]

    def tell(progress: Any) -> None:
        if watch is not None:
            watch(method, seed, progress.step, progress.steps)

    return train(recipe, run, data=data, device=device, resume=run_folder.is_run(run), watch=tell).line


def _row(method: str, cost: Plan, lines: Sequence[dict[str, Any]]) -> ComparisonRow:
    scores = [line[score_name(line)] for line in lines]
    return ComparisonRow(
        method=method,
        scores=scores,
        mean=statistics.fmean(scores),
        deviation=statistics.stdev(scores) if len(scores) > 1 else None,
        sparsity=statistics.fmean(line["sparsity"] for line in lines),
        steps=lines[0]["step"],
        training_flops=statistics.fmean(line["training_flops"] for line in lines),
        inference_flops=cost.inference_flops,
    )
