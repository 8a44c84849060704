"""WideResNet-22-2 on CIFAR-10: RigL beside what it is compared with, at three sparsities and two distributions."""

from __future__ import annotations

from _experiment import Experiment, run

METHODS = {
    "dense": "dense",
    "small dense": "small_dense",
    "static": "static",
    "SET": "set",
    "RigL": "rigl",
    "gradual pruning": "gradual_pruning",
}

EXPERIMENT = Experiment(
    name="cifar10",
    title="CIFAR-10, WideResNet-22-2",
    text="""\
Claim: static < SET < RigL at equal cost, and RigL trained for longer reaches what pruning reaches. The columns of 250
epochs are the paper's schedule; that of 3 epochs is the same schedule compressed, for machines without a GPU.""",
    recipe="wrn-22-2-cifar10",
    rows={
        **{label: [f"topology.method={method}"] for label, method in METHODS.items()},
        "RigL 2x": ["topology.method=rigl", "training.multiplier=2.0"],
        "SET, uniform": ["topology.method=set", "topology.distribution=uniform"],
        "RigL, uniform": ["topology.method=rigl", "topology.distribution=uniform"],
    },
    columns={
        **{f"{sparsity} % in 250 epochs": [f"topology.sparsity=0.{sparsity}"] for sparsity in (80, 90, 95)},
        "90 % in 3 epochs": ["topology.sparsity=0.9", "training.epochs=3", "topology.delta_t=50"],
    },
    seeds=range(3),
    paper={
        ("dense", "80 % in 250 epochs"): 94.1,
        ("RigL", "80 % in 250 epochs"): 93.6,
        ("RigL", "90 % in 250 epochs"): 92.9,
        ("static", "80 % in 250 epochs"): 92.9,
        ("static", "90 % in 250 epochs"): 91.5,
        ("gradual pruning", "80 % in 250 epochs"): 93.6,
        ("gradual pruning", "90 % in 250 epochs"): 93.3,
    },
    paper_source="Evci et al. 2020, section 4.3; RigL's from the authors' README, the others recalled",
)


if __name__ == "__main__":
    run(EXPERIMENT)
