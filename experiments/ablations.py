"""RigL's own settings on MNIST: interval and share of updates, their schedule, and the distribution of sparsity."""

from __future__ import annotations

from _experiment import Experiment, run

EXPERIMENT = Experiment(
    name="ablations",
    title="Ablations: ΔT, α, schedule, distribution",
    text="""\
Claim: RigL does well with ΔT between 50 and 500 and α between 0.1 and 0.5, the cosine is as good as any schedule, and
ERK beats uniform. Each row changes one setting of RigL on MNIST at 98 % in 10 epochs; the first is the recipe.
Uniform is no fair row here: it leaves the first layer dense, which has 88 % of this network's weights.""",
    recipe="lenet-300-100-mnist",
    rows={
        "ΔT 100, α 0.3, cosine, ERK": [],
        **{f"ΔT {delta_t}": [f"topology.delta_t={delta_t}"] for delta_t in (25, 50, 200, 500, 1000)},
        **{f"α {alpha}": [f"topology.alpha={alpha}"] for alpha in (0.1, 0.2, 0.5)},
        **{name: [f"topology.schedule={name}"] for name in ("constant", "linear", "inverse_power")},
        "uniform": ["topology.distribution=uniform"],
        "ER": ["topology.distribution=erdos_renyi"],
    },
    columns={"98 % in 10 epochs": ["topology.sparsity=0.98", "training.epochs=10", "topology.method=rigl"]},
    seeds=range(3),
)


if __name__ == "__main__":
    run(EXPERIMENT)
