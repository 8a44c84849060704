"""What the experiments share: cells that are trained once, results that survive interruption, and RESULTS.md.

An experiment is a table. Each cell is a recipe with changes, trained with several seeds; a run that stands in the runs
folder is not repeated and one that was interrupted goes on. After each run `results/NAME.json` is written, and at the
end RESULTS.md from all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import sparsify
from sparsify.data import data_info
from sparsify.files import write_bytes, write_json
from sparsify.formats import read_model
from sparsify.training import run_folder
from sparsify.training.compute import Compute
from sparsify.training.metrics import read_metrics

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Experiment:
    """A table of training runs. A cell's changes are the row's after the column's, with {runs} and {seed} filled in."""

    name: str
    title: str
    text: str  # what is claimed and how it is tested, Markdown
    recipe: str
    rows: Mapping[str, Sequence[str]]  # label -> changes as "section.key=value"
    columns: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    compute: Mapping[tuple[str, str], Compute] = field(default_factory=dict)  # (row, column) -> where it is not masked
    metric: str = "test_accuracy"  # a key of the metrics' last line
    scale: float = 100.0  # factor on it for the table
    unit: str = "test accuracy, %"
    more_is_better: bool = True
    paper: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (row, column) -> the paper's figure
    paper_source: str = ""
    findings: Callable[[Mapping[str, Any]], list[str]] | None = None  # sentences computed from the results
    parts: int = 10  # of a run, that the training loss is averaged over
    picture: Callable[[Mapping[str, Any], Path], None] | None = None  # draws the results into an .svg file
    caption: str = ""


def run(experiment: Experiment) -> None:
    """Train what is missing of an experiment, as the command line asks."""
    parser = argparse.ArgumentParser(description=experiment.title)
    parser.add_argument("--rows", help="only these, as RigL,SET")
    parser.add_argument("--columns", help="only these")
    parser.add_argument("--seeds", help="only these, as 0,1")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--set", action="append", default=[], help="change every cell's recipe; say --results too")
    parser.add_argument("--report", action="store_true", help="train nothing, write the results' pages anew")
    given = parser.parse_args()
    if not given.report:
        seeds = [int(seed) for seed in given.seeds.split(",")] if given.seeds else experiment.seeds
        for seed in seeds:  # a whole table with few seeds comes first
            for row in _chosen(experiment.rows, given.rows):
                for column in _chosen(experiment.columns, given.columns):
                    _train_cell(experiment, row, column, seed, given)
    stored = given.results / f"{experiment.name}.json"
    if experiment.picture is not None and stored.is_file():
        experiment.picture(json.loads(stored.read_text()), stored.with_suffix(".svg"))
    write_report(given.results)


def _chosen(labels: Mapping[str, Any], given: str | None) -> list[str]:
    wanted = given.split(",") if given else list(labels)
    if unknown := set(wanted) - set(labels):
        raise SystemExit(f"There is no {', '.join(sorted(unknown))}. Known: {', '.join(labels)}.")
    return wanted


def _train_cell(experiment: Experiment, row: str, column: str, seed: int, given: argparse.Namespace) -> None:
    path = given.results / f"{experiment.name}.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if str(seed) in results.get(column, {}).get(row, {}):
        return
    folder = given.runs / experiment.name
    place = folder / _slug(column) / _slug(row) / f"seed{seed}"
    recipe = _recipe(experiment, row, column, [*given.set, f"training.seed={seed}"], folder / _slug(column), seed)
    print(f"{experiment.name}: {row}, {column}, seed {seed}", flush=True)
    began, whole = time.process_time(), not run_folder.is_run(place)
    if run_folder.model_file(place).is_file():
        run_folder.reopen(place, recipe)  # an error where the run was of another recipe
    else:
        sparsify.train(recipe, place, data=given.data, resume=not whole, compute=experiment.compute.get((row, column)))
    lines = read_metrics(place)
    line = lines[-1] | {"losses": parts(lines, experiment.parts), "unevenness": unevenness(place)}
    if whole:  # what other programs take of the machine does not count
        line["cpu_seconds"] = round(time.process_time() - began, 1)
    kept = ("test_loss", "test_accuracy", "sparsity", "step", "training_flops", "loss", "losses", "unevenness")
    results = json.loads(path.read_text()) if path.is_file() else {}  # another process may have written meanwhile
    results.setdefault(column, {}).setdefault(row, {})[str(seed)] = {
        key: line[key] for key in (*kept, "itop_rate", "cpu_seconds", experiment.metric) if key in line
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)


def parts(lines: Sequence[Mapping[str, Any]], number: int) -> list[float]:
    """The mean training loss in each of a run's equal parts, of its metrics' lines; each is the mean since the last."""
    last, sums, counts = lines[-1]["step"], [0.0] * number, [0] * number
    for before, line in zip([{"step": 0}, *lines], lines, strict=False):
        part, steps = (line["step"] - 1) * number // last, line["step"] - before["step"]
        sums[part] += line["loss"] * steps
        counts[part] += steps
    return [round(total / count, 4) for total, count in zip(sums, counts, strict=True) if count]


def unevenness(run: Path) -> float | None:
    """How unevenly a run's connections are shared out over neurons or channels; None where nothing is sparse.

    The variance of their number, as a multiple of what chance gives, n p (1 - p): the mean over layers and both ends.
    """
    ratios = []
    for mask in read_model(run_folder.model_file(run)).masks().values():
        density = mask.mean()
        if 0 < density < 1:
            for axis in (0, 1):
                ends = np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1)
                ratios.append(ends.sum(1).var() / (ends.shape[1] * density * (1 - density)))
    return round(float(np.mean(ratios)), 2) if ratios else None


def _recipe(
    experiment: Experiment, row: str, column: str, further: Sequence[str] = (), runs: Path = HERE, seed: int = 0
) -> sparsify.Recipe:
    changes = [*experiment.columns[column], *experiment.rows[row], *further]
    return sparsify.load_recipe(experiment.recipe, [each.format(runs=runs, seed=f"seed{seed}") for each in changes])


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label.lower()).strip("-")


def write_report(results: Path = RESULTS) -> None:
    """RESULTS.md from every experiment's results: at the top of the checkout, or in a results folder of one's own."""
    import importlib

    parts = [HEADER]
    for script in sorted(HERE.glob("*.py")):
        if script.stem.startswith("_"):
            continue
        module = importlib.import_module(script.stem)
        stored = results / f"{script.stem}.json"
        found = json.loads(stored.read_text()) if stored.is_file() else {}
        if hasattr(module, "report"):
            parts.append(module.report(found))
        elif hasattr(module, "EXPERIMENT"):  # the others look at the machine, and keep no results
            parts.append(table_page(module.EXPERIMENT, found))
    target = HERE.parent / "RESULTS.md" if results == RESULTS else results / "RESULTS.md"
    write_bytes(target, ("\n\n".join(parts) + "\n").encode())


HEADER = """# Results

Written by the scripts in [experiments/](experiments) from `experiments/results/`; nothing here is typed by hand. Cells
are mean ± sample standard deviation over seeds, with their number where it is not the whole set. *not run* is a
cell that no machine has had the time for yet: what it would take, from the processor time of the cells that were run,
and the command that runs it, stand under the table. Where the paper gives a figure it stands behind a slash. *Ahead*
and *behind* are differences of more than two standard errors, paired by seed."""


def table_page(experiment: Experiment, found: Mapping[str, Any]) -> str:
    """An experiment's table in Markdown, its findings, and the command that fills it."""
    lines = [f"## {experiment.title}", "", experiment.text, ""]
    if experiment.picture is not None and found:
        lines += [f"![{experiment.caption}](experiments/results/{experiment.name}.svg)", ""]
    lines.append("| | " + " | ".join(experiment.columns) + " |")
    lines.append("|---" * (len(experiment.columns) + 1) + "|")
    for row in experiment.rows:
        cells = [_cell(experiment, found, row, column) for column in experiment.columns]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    lines += ["", f"{experiment.unit[0].upper()}{experiment.unit[1:]}; seeds {', '.join(map(str, experiment.seeds))}. "
              f"`python experiments/{experiment.name}.py`"]  # fmt: skip
    if experiment.paper_source:
        lines.append(f"The paper's figures: {experiment.paper_source}.")
    findings = experiment.findings(found) if experiment.findings is not None and found else []
    if points := [*findings, *not_run(experiment, found)]:
        lines += ["", *(f"- {point}" for point in points)]
    return "\n".join(lines)


def not_run(experiment: Experiment, found: Mapping[str, Any]) -> list[str]:
    """For each column with cells that were not run, a sentence that names them and says what they would cost."""
    rates: dict[str, list[float]] = {}  # of each network, seconds a training sample
    for column, rows in found.items():
        for row, seeds in rows.items():
            network, samples = _size(experiment, row, column)
            known = [seed["cpu_seconds"] / samples for seed in seeds.values() if "cpu_seconds" in seed]
            rates.setdefault(network, []).extend(known)
    points = []
    for column in experiment.columns:
        missing = [row for row in experiment.rows if not found.get(column, {}).get(row)]
        if not missing:
            continue
        sizes = [_size(experiment, row, column) for row in missing]
        hours = [statistics.median(rates[network]) * samples / 3600 for network, samples in sizes if rates.get(network)]
        cost = "What it would take is not known: no run of this network was timed."
        if hours:
            total = sum(hours) * len(experiment.seeds)
            cost = f"It would take about {_hours(max(hours))} of one core a run, {_hours(total)} in all."
        who = "all rows" if len(missing) == len(experiment.rows) else "; ".join(missing)
        points.append(f"*Not run*, {column}: {who}. {cost}")
    return points


def _hours(hours: float) -> str:
    return f"{hours:.0f} hours" if hours >= 10 else f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def _size(experiment: Experiment, row: str, column: str) -> tuple[str, int]:
    """A cell's network, and the training samples that a run goes through."""
    recipe = _recipe(experiment, row, column)
    steps = recipe.steps(data_info(recipe.data.name, recipe.data.options).train_samples)
    return str(recipe.model), steps * recipe.training.batch_size


def compare(
    experiment: Experiment, found: Mapping[str, Any], column: str, row: str, other: str, elsewhere: str | None = None
) -> list[str]:
    """One sentence: whether a row is ahead of another one, seed by seed; none below two seeds of both.

    elsewhere: the column of the other one, where it is not the same.
    """
    ours, theirs = found.get(column, {}).get(row, {}), found.get(elsewhere or column, {}).get(other, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return []
    gaps = [experiment.scale * (ours[seed][experiment.metric] - theirs[seed][experiment.metric]) for seed in seeds]
    mean, error = statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    better = mean if experiment.more_is_better else -mean
    word = "ahead of" if better > 2 * error else "behind" if better < -2 * error else "level with"
    place = f" in the column {elsewhere}" if elsewhere else ""
    return [f"{column}: {row} is {word} {other}{place} by {mean:+.2f} ± {error:.2f} ({len(seeds)} seeds)."]


def means(found: Mapping[str, Any], column: str, rows: Sequence[str]) -> list[str]:
    """What these rows' runs cost, how evenly their connections are shared out, how much was tried: a sentence each."""
    cells = found.get(column, {})
    lines = []
    for text, key, style in (
        ("FLOPs of training", "training_flops", ".2e"),
        ("variance of the connections per channel, as a multiple of chance", "unevenness", ".1f"),
        ("share of all connections that were ever active", "itop_rate", ".0%"),
    ):
        known = {row: statistics.fmean(line[key] for line in cells[row].values()) for row in rows if row in cells}
        if len(known) > 1:
            lines.append(f"{column}: {text}: {', '.join(f'{row} {mean:{style}}' for row, mean in known.items())}.")
    return lines


def _cell(experiment: Experiment, found: Mapping[str, Any], row: str, column: str) -> str:
    values = scores(experiment, found, row, column)
    text = "*not run*"
    if values:
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        count = "" if len(values) == len(experiment.seeds) else f" (of {len(values)})"
        text = f"{statistics.fmean(values):.2f}{spread}{count}"
    paper = experiment.paper.get((row, column))
    return text if paper is None else f"{text} / {paper}"


def scores(experiment: Experiment, found: Mapping[str, Any], row: str, column: str) -> list[float]:
    """The metric of each seed, in the table's unit."""
    lines = found.get(column, {}).get(row, {})
    return [lines[seed][experiment.metric] * experiment.scale for seed in sorted(lines, key=int)]
