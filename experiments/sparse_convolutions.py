"""WideResNet-22-2 on CIFAR-10 with dense weights times masks, and with convolutions that hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from _experiment import Experiment, run

from sparsify.training import loop

COLUMN = "90 % in 100 steps"
STEPS = 100
EXPERIMENT = Experiment(
    name="sparse_convolutions",
    title="Masked and sparse computation, WideResNet-22-2 on CIFAR-10",
    text="""\
Claim: `--compute sparse` trains what masks train, in less time. The recipe for a quarter of an epoch, with ΔT = 20, so
that there are three updates. Runs of one seed draw the same numbers, and part because float32 sums are
taken in another order. Dense and masked networks have their channels last in memory, which is faster.""",
    recipe="wrn-22-2-cifar10",
    rows={
        "dense": ["topology.method=dense", "training.channels_last=true"],
        "RigL, masked": ["training.channels_last=true"],
        "RigL, sparse": [],
    },
    columns={COLUMN: ["topology.sparsity=0.9", f"training.steps={STEPS}", "topology.delta_t=20"]},
    compute={("RigL, sparse", COLUMN): "sparse"},
    seeds=range(1),
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """The curves side by side, and what a step takes."""
    lines = []
    for row, seeds in found.get(COLUMN, {}).items():
        tenths = zip(*(seed["losses"] for seed in seeds.values()), strict=True)
        lines.append(f"{row}: training loss in each tenth {', '.join(f'{fmean(losses):.3f}' for losses in tenths)}.")
    return lines


if __name__ == "__main__":
    loop.LOG_EVERY = STEPS // 10  # a line of metrics for each tenth
    run(EXPERIMENT)
