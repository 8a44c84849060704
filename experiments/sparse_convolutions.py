"""WideResNet-22-2 on CIFAR-10 with dense weights times masks, and with convolutions that hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from _experiment import Experiment, run

from sparsify.report.plots import figure_in
from sparsify.training import loop

COLUMN = "90 % in one epoch"
STEPS, EVERY = 390, 10  # of the epoch, and from one point of the curves to the next
COLOURS = {"dense": "#9d9da1", "masked": "#4c78a8", "sparse": "#f58518"}
EXPERIMENT = Experiment(
    name="sparse_convolutions",
    title="Masked and sparse computation, WideResNet-22-2 on CIFAR-10",
    text="""\
Claim: `--compute sparse` trains what masks train, in less time. The recipe for one epoch, with ΔT = 50, so that there
are five updates. Runs of one seed draw the same numbers, and part because float32 sums are taken in another order.
Dense and masked networks have their channels last in memory, which is faster.""",
    recipe="wrn-22-2-cifar10",
    rows={
        "dense": ["topology.method=dense", "training.channels_last=true"],
        "masked": ["training.channels_last=true"],
        "sparse": [],
    },
    columns={COLUMN: ["topology.sparsity=0.9", f"training.steps={STEPS}", "topology.delta_t=50"]},
    compute={("sparse", COLUMN): "sparse"},
    seeds=range(2),
    findings=lambda found: findings(found),
    parts=STEPS // EVERY,
    picture=lambda found, path: picture(found, path),
    caption="training loss over steps",
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """How far curves are apart: of the same seed, and as a measure for it of two seeds."""
    cells = found.get(COLUMN, {})
    pairs = {
        f"{row} and masked": [
            (seeds[seed], cells["masked"][seed]) for seed in sorted(seeds) if seed in cells.get("masked", {})
        ]
        for row, seeds in cells.items()
        if row != "masked"
    }
    pairs["masked with one seed and with the next"] = list(pairwise(cells.get("masked", {}).values()))
    lines = []
    for label, runs in pairs.items():
        gaps = [a - b for one, other in runs for a, b in zip(one["losses"], other["losses"], strict=True)]
        if gaps:
            lines.append(
                f"{label}: training losses, each the mean of {EVERY} steps, differ by {fmean(map(abs, gaps)):.3f} "
                f"in the mean and {max(map(abs, gaps)):.3f} at most; the mean difference is {fmean(gaps):+.3f}."
            )
    return lines


def picture(found: Mapping[str, Any], path: Path) -> None:
    """The training loss over steps."""
    with figure_in(path, figsize=(6, 3.6)) as (figure, axes):
        for row, colour in COLOURS.items():
            if seeds := found.get(COLUMN, {}).get(row):
                losses = _curve(seeds)
                steps = [(part + 0.5) * STEPS / len(losses) for part in range(len(losses))]
                axes.plot(steps, losses, color=colour, label=row)
        axes.set_xlabel("step")
        axes.set_ylabel(f"training loss, mean of {EVERY} steps (nats)")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)


def _curve(seeds: Mapping[str, Any]) -> list[float]:
    """The mean over seeds."""
    return [fmean(losses) for losses in zip(*(seed["losses"] for seed in seeds.values()), strict=True)]


if __name__ == "__main__":
    loop.LOG_EVERY = EVERY
    run(EXPERIMENT)
