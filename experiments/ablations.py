"""RigL's own settings on MNIST: interval and share of updates, their schedule, and the distribution of sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _experiment import Experiment, compare, run

RECIPE = "ΔT 100, α 0.3, cosine, ERK"

EXPERIMENT = Experiment(
    name="ablations",
    title="Ablations: ΔT, α, schedule, distribution",
    text="""\
Claim: RigL does well with ΔT between 50 and 500 and α between 0.1 and 0.5, the cosine is as good as any schedule, and
ERK beats uniform. Each row changes one setting of RigL on MNIST at 98 % in 10 epochs; the first is the recipe.
*Uniform* as the paper has it is no fair row here: it leaves the first layer dense, which has 88 % of this network's
weights. ER is no row because without kernels it is ERK.""",
    recipe="lenet-300-100-mnist",
    rows={
        RECIPE: [],
        **{f"ΔT {delta_t}": [f"topology.delta_t={delta_t}"] for delta_t in (25, 50, 200, 500, 1000)},
        **{f"α {alpha}": [f"topology.alpha={alpha}"] for alpha in (0.1, 0.2, 0.5)},
        **{name: [f"topology.schedule={name}"] for name in ("constant", "linear", "inverse_power")},
        "uniform": ["topology.distribution=uniform"],
        "uniform (the first layer too)": [
            "topology.distribution=uniform",
            'topology.layers={{"layer:first"={{sparsity=0.98, budget="inside"}}}}',
        ],
    },
    columns={"98 % in 10 epochs": ["topology.sparsity=0.98", "training.epochs=10", "topology.method=rigl"]},
    seeds=range(3),
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """What a change of one setting does."""
    column = next(iter(EXPERIMENT.columns))
    return [
        line for row in EXPERIMENT.rows if row != RECIPE for line in compare(EXPERIMENT, found, column, row, RECIPE)
    ]


if __name__ == "__main__":
    run(EXPERIMENT)
