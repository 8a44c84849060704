"""WideResNet-22-2 on CIFAR-10: RigL beside what it is compared with, at three sparsities and two distributions."""

from __future__ import annotations

from collections.abc import Mapping
from operator import sub
from statistics import fmean
from typing import Any

from _experiment import Experiment, compare, means, run

METHODS = {
    "dense": "dense",
    "small dense": "small_dense",
    "static": "static",
    "SET": "set",
    "RigL": "rigl",
    "SRigL": "srigl",
    "gradual pruning": "gradual_pruning",
}

SHORT = [
    "model.depth=10",
    "model.width=1",
    "training.epochs=6",
    "training.precision=bfloat16",
    "training.channels_last=true",
    "training.evaluate_every=6.0",
]

SPARSELY = ("static", "SET", "RigL", "RigL (8 batches)", "RigL (32 batches)")
# where static, SET and RigL hold their non-zeros only
SPARSE = ("90 % in 8 epochs", "90 % in 16 epochs", "95 % in 8 epochs", "90 % in 30 epochs (WRN-10-1)")

EXPERIMENT = Experiment(
    name="cifar10",
    title="CIFAR-10, WideResNet-22-2",
    text="""\
Claim: static < SET < RigL at equal cost, and RigL trained for longer reaches what pruning reaches. The columns of
250 epochs are the paper's schedule; the others are for machines without a GPU. There learning rate and updates
keep their places within training, and ΔT is the paper's 100 steps. In 8, 16 and 30 epochs static, SET and RigL
compute with their non-zeros only (`--compute sparse`); in 6 all are masked, with the forward pass in bfloat16. 16
epochs are the longest that WRN-22-2 was given, and there as in 8 all end within a point of each other, in 16 static,
SET and RigL (32 batches) level: a network that is not yet bound by what so few connections can hold hardly needs
their choice. WRN-10-1, of 78,000 weights, is bound by it sooner. At 80 % it
is not in 6 epochs; from 90 % on static is left behind, at 95 % and in 30 epochs by more than two points. RigL for
twice as long is ahead of pruning, as in the paper. RigL that grows by the gradient of one batch is ahead of SET at
97 % only, and only in the mean. What is otherwise in the paper was looked for in five places, and found in the
last. When: RigL falls behind in the first tenths of training. Where: the largest gradients lie together, so that
its connections gather at some channels; SRigL, which gives each neuron as many connections, is the test of that,
and is no better. How often: an update every 500 steps in the place of 100 leaves a new connection time to grow,
and RigL gains nothing on SET by it. How much is tried: in 30 epochs SET has had more of all connections, in 6 the
two have had as many. By what: a batch has 128 images here, and 4,096 in the paper's ImageNet runs; of so few, the
gradient is noisy, and the paper has 750 updates to make up for it, where these schedules have 17 to 87. *RigL (32
batches)* looks at the sum over the 32 batches up to an update (`topology.growth_batches`), 4,096 images too. With
that the order is the paper's wherever connections are scarce. It is not for nothing: each batch takes a dense
gradient of the weights, see the FLOPs below, and for these SET can train 1.5 times as long, which is worth more in
6 epochs. Rows are ERK unless they say uniform.""",
    recipe="wrn-22-2-cifar10",
    rows={
        **{label: [f"topology.method={method}"] for label, method in METHODS.items()},
        "RigL (8 batches)": ["topology.method=rigl", "topology.growth_batches=8"],
        "RigL (32 batches)": ["topology.method=rigl", "topology.growth_batches=32"],
        "SET 1.5x": ["topology.method=set", "training.multiplier=1.5"],
        "RigL 2x": ["topology.method=rigl", "training.multiplier=2.0"],
        "static (uniform)": ["topology.method=static", "topology.distribution=uniform"],
        "SET (uniform)": ["topology.method=set", "topology.distribution=uniform"],
        "RigL (uniform)": ["topology.method=rigl", "topology.distribution=uniform"],
    },
    columns={
        **{f"{sparsity} % in 250 epochs": [f"topology.sparsity=0.{sparsity}"] for sparsity in (80, 90, 95)},
        "90 % in 8 epochs": ["topology.sparsity=0.9", "training.epochs=8", "training.evaluate_every=2.0"],
        "90 % in 16 epochs": ["topology.sparsity=0.9", "training.epochs=16", "training.evaluate_every=4.0"],
        "95 % in 8 epochs": ["topology.sparsity=0.95", "training.epochs=8", "training.evaluate_every=2.0"],
        "80 % in 6 epochs (WRN-10-1)": ["topology.sparsity=0.8", *SHORT],
        "90 % in 6 epochs (WRN-10-1)": ["topology.sparsity=0.9", *SHORT],
        "95 % in 6 epochs (WRN-10-1)": ["topology.sparsity=0.95", *SHORT],
        "90 % in 6 epochs (WRN-10-1; ΔT 500)": ["topology.sparsity=0.9", "topology.delta_t=500", *SHORT],
        "97 % in 6 epochs (WRN-10-1)": ["topology.sparsity=0.97", *SHORT],
        "90 % in 30 epochs (WRN-10-1)": [
            "topology.sparsity=0.9",
            "model.depth=10",
            "model.width=1",
            "training.epochs=30",
            "training.evaluate_every=5.0",
        ],
    },
    compute={(row, column): "sparse" for row in SPARSELY for column in SPARSE},
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
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """The claim's comparisons, for both distributions."""
    pairs = [("SET", "static"), ("RigL", "SET"), ("RigL", "static"), ("RigL", "gradual pruning"), ("SRigL", "RigL")]
    several = ("RigL (8 batches)", "RigL (32 batches)")
    pairs += [(row, other) for row in several for other in ("RigL", "SET", "static")] + [(several[1], "SET 1.5x")]
    pairs += [(f"{row} (uniform)", f"{other} (uniform)") for row, other in pairs[:3]]
    pairs += [("RigL 2x", other) for other in ("RigL", "gradual pruning")]
    pairs += [(row, f"{row} (uniform)") for row in ("static", "RigL")]
    lines = []
    for column in EXPERIMENT.columns:
        for row, other in pairs:
            lines += compare(EXPERIMENT, found, column, row, other)
        cells = found.get(column, {})
        rigl = cells.get("RigL", {})
        for other in ("static", "SET"):
            if seeds := rigl.keys() & (others := cells.get(other, {})).keys():
                tenths = zip(*(map(sub, rigl[seed]["losses"], others[seed]["losses"]) for seed in seeds), strict=True)
                gaps = ", ".join(f"{fmean(gap):+.3f}" for gap in tenths)
                lines.append(f"{column}: RigL's training loss less {other}'s in each tenth of training: {gaps}.")
        lines += means(
            found, column, ("static", "SET", "SET 1.5x", "RigL", "RigL (8 batches)", "RigL (32 batches)", "SRigL")
        )
    return lines


if __name__ == "__main__":
    run(EXPERIMENT)
