"""RigL and SET on MNIST by the number of updates: where gradients help most to choose connections."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from _experiment import Experiment, compare, run

EXPERIMENT = Experiment(
    name="updates",
    title="MNIST: RigL and SET by the number of updates",
    text="""\
Why RigL is no longer ahead of SET where LeNet-300-100 is trained for 50 epochs, other than in the paper. A network of
266,200 weights is small: updates that replace up to 30 % of the connections every 100 steps let chance come by most of
what gradients would have chosen. So the longer ΔT, the further RigL should be ahead.""",
    recipe="lenet-300-100-mnist",
    rows={"RigL": ["topology.method=rigl"], "SET": ["topology.method=set"]},
    columns={
        f"98 % in 50 epochs, ΔT {delta_t}": [
            "topology.sparsity=0.98",
            "training.epochs=50",
            f"topology.delta_t={delta_t}",
        ]
        for delta_t in (100, 300, 1000)
    },
    seeds=range(3),
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """How far RigL is ahead, and what share of all weights a method has held at any time."""
    lines = []
    for column in EXPERIMENT.columns:
        lines += compare(EXPERIMENT, found, column, "RigL", "SET")
        explored = {
            row: [seed["itop_rate"] for seed in seeds.values() if "itop_rate" in seed]
            for row, seeds in sorted(found.get(column, {}).items())
        }
        if told := ", ".join(f"{row} {fmean(shares):.0%}" for row, shares in explored.items() if shares):
            lines.append(f"{column}: share of all weights that were connected at some time: {told}.")
    return lines


if __name__ == "__main__":
    run(EXPERIMENT)
