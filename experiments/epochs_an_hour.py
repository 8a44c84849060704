"""Epochs of WideResNet-22-2 on CIFAR-10 an hour: dense, with masks, and with the non-zeros only.

The runs are whole trainings, with data, updates and metrics, that take turns in one process; evaluation is not timed.
Each turn has one update of the masks; an epoch has as many as the recipe's ΔT gives it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from _experiment import RESULTS, write_report
from sparse_convolutions import COLUMN, EXPERIMENT

from sparsify.data import data_info
from sparsify.files import write_json
from sparsify.recipe import load_recipe
from sparsify.training.loop import Progress, training

TURN = 10  # steps


def main() -> None:
    """Time all three in turns; write results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {row: start(row, Path(folder) / row, given.data) for row in EXPERIMENT.rows}
        for run in runs.values():
            turn(run)  # what is compiled once is there now
        rounds = []
        for number in range(given.rounds):
            rounds.append({row: turn(run) for row, run in runs.items()})
            print(f"epochs_an_hour: round {number + 1}, {rounds[-1]}", flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    write_json(given.results / "epochs_an_hour.json", {"threads": torch.get_num_threads(), "rounds": rounds})
    write_report(given.results)


def start(row: str, folder: Path, data: Path | None) -> Iterator[Progress]:
    """A run of the experiment's row that updates once a turn and is not evaluated."""
    changes = [*EXPERIMENT.columns[COLUMN], *EXPERIMENT.rows[row], f"topology.delta_t={TURN}", "training.steps=97656"]
    recipe = load_recipe(EXPERIMENT.recipe, [*changes, "training.evaluate_every=250"])
    return training(recipe, folder, data=data, compute=EXPERIMENT.compute.get((row, COLUMN)))


def turn(run: Iterator[Progress]) -> dict[str, float]:
    """Seconds of a step, and of one that updates the masks, with what the step behind it takes more.

    The last step of a turn updates, and the first one finds new connections and caches that the others have filled.
    """
    times = []
    for _ in range(TURN):
        began = time.perf_counter()
        next(run)
        times.append(time.perf_counter() - began)
    step = fmean(times[1:-1])
    return {"step": step, "update": times[-1] + times[0] - step}


def epoch_seconds(times: Mapping[str, float]) -> float:
    """Of an epoch with the recipe's batch and ΔT."""
    recipe = load_recipe(EXPERIMENT.recipe, [])
    steps = data_info(recipe.data.name, recipe.data.options).train_samples / recipe.training.batch_size
    updates = steps / recipe.topology.delta_t
    return (steps - updates) * times["step"] + updates * times["update"]


def report(found: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    text = ["## Epochs an hour, WideResNet-22-2 on CIFAR-10", ""]
    text += ["Claim: a run at 90 % (ERK) that holds its non-zeros only takes less time than a dense or masked one.", ""]
    if not found:
        return "\n".join([*text, "*not run*: `python experiments/epochs_an_hour.py`"])
    rounds = found["rounds"]
    text += ["| | a step, ms | one that updates, ms | epochs an hour | of dense's |", "|---|---|---|---|---|"]
    for row in rounds[0]:
        step, update = (f"{1e3 * median(times[row][key] for times in rounds):.0f}" for key in ("step", "update"))
        hourly = 3600 / median(epoch_seconds(times[row]) for times in rounds)
        ratios = [epoch_seconds(times["dense"]) / epoch_seconds(times[row]) for times in rounds]
        spread = f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        text.append(f"| {row} | {step} | {'' if row == 'dense' else update} | {hourly:.0f} | {spread} |")
    text += [
        "",
        f"Medians of {len(rounds)} rounds in which all take turns, {found['threads']} threads; in brackets the least "
        "and the most of a round. What updates\nalso has what the next step takes more because its connections are new."
        " Evaluation does not count. Dense and\nmasked have channels last. `python experiments/epochs_an_hour.py`",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    main()
