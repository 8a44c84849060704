"""The loss landscape between a static and a pruned solution, and RigL's escape (Evci et al. 2020, section 4.4)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _experiment import HERE, RESULTS, write_report

import sparsify
from sparsify.files import write_json
from sparsify.training import run_folder
from sparsify.training.metrics import read_metrics

RECIPE, SPARSITY, EPOCHS = "lenet-300-100-mnist", 0.98, 20
RUNS = {
    "static": ["topology.method=static"],
    "pruned": ["topology.method=gradual_pruning"],
    "static (trained on)": ["topology.method=static", "training.start_from={static}"],
    "RigL from static": ["topology.method=rigl", "training.start_from={static}"],
}


def main() -> None:
    """Train the four runs where they are missing, measure the paths, write results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=HERE / "runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--steps", type=int, default=2000, help="that fit a curve")
    parser.add_argument("--samples", type=int, default=10_000)
    given = parser.parse_args()
    folders, lines = {}, {}
    for label, changes in RUNS.items():
        place = given.runs / "landscape" / label.lower().replace(",", "").replace(" ", "-")
        folders[label] = place
        base = [f"topology.sparsity={SPARSITY}", f"training.epochs={EPOCHS}"]
        filled = [change.format(static=folders["static"]) for change in changes]
        print(f"landscape: {label}", flush=True)
        if not run_folder.model_file(place).is_file():
            recipe = sparsify.load_recipe(RECIPE, [*base, *filled, *given.set])
            sparsify.train(recipe, place, data=given.data, resume=run_folder.is_run(place))
        last = read_metrics(place)[-1]
        lines[label] = {key: last[key] for key in ("loss", "test_loss", "test_accuracy", "step")}
    found = sparsify.landscape(
        folders["static"], folders["pruned"], steps=given.steps, samples=given.samples, data=given.data
    )
    found = dataclasses.replace(found, start="static", end="pruned")
    given.results.mkdir(parents=True, exist_ok=True)
    sparsify.plot_landscape(found, given.results / "landscape.svg")
    write_json(given.results / "landscape.json", {"runs": lines, "paths": dataclasses.asdict(found)})
    write_report(given.results)


def report(found: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## The loss landscape between solutions", "",
        f"Claim: between a static and a pruned solution ({RECIPE}, {SPARSITY:.0%}, {EPOCHS} epochs) there is a barrier "
        "inside the\nsparse subspace and almost none in the full space; static training cannot leave where it is, and "
        "RigL can.",
    ]  # fmt: skip
    if not found:
        return "\n".join([*lines, "", "*not run*: `python experiments/landscape.py`"])
    paths = found["paths"]["paths"]
    lines += ["", "![training loss along the paths](experiments/results/landscape.svg)", ""]
    lines += ["| path | space | barrier, nats | highest loss | mean loss |", "|---|---|---|---|---|"]
    for path in paths:
        losses = path["losses"]
        numbers = (path["barrier"], max(losses), sum(losses) / len(losses))
        lines.append(
            f"| {path['curve']} | {path['space'] or 'both'} | " + " | ".join(f"{n:.4f}" for n in numbers) + " |"
        )
    lines += ["", "| run | training loss at the end | test accuracy, % |", "|---|---|---|"]
    for label, line in found["runs"].items():
        lines.append(f"| {label} | {line['loss']:.4f} | {100 * line['test_accuracy']:.2f} |")
    lines += [
        "",
        f"Losses along paths over {found['paths']['samples']:,} training samples. `python experiments/landscape.py`",
    ]
    stuck, escaped = (found["runs"][label]["loss"] for label in ("static (trained on)", "RigL from static"))
    verb = "escapes" if escaped < 0.8 * stuck else "does not escape"
    lines += ["", f"- From the static solution RigL {verb}: training loss {escaped:.4f}, static training {stuck:.4f}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
