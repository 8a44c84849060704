"""LeNet-300-100 on MNIST: every method at 98 % and 95 %, and RigL from a bad solution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _experiment import Experiment, compare, run

EXPERIMENT = Experiment(
    name="mnist",
    title="MNIST, LeNet-300-100",
    text="""\
Claim: at equal cost RigL beats static, SNIP and SET, and it does so from anywhere, also from where static training
ended badly (*from static's solution*: weights and masks of the static run of the same seed, trained again for as long
as the first time). Pruning and GraNet are dense at first and cost more; RigL trained for longer reaches pruning.""",
    recipe="lenet-300-100-mnist",
    rows={
        "dense": ["topology.method=dense"],
        "small dense": ["topology.method=small_dense"],
        "static": ["topology.method=static"],
        "SNIP": ["topology.method=snip"],
        "SET": ["topology.method=set"],
        "DSR": ["topology.method=dsr"],
        "SNFS": ["topology.method=snfs"],
        "RigL": ["topology.method=rigl"],
        "RigL (32 batches)": ["topology.method=rigl", "topology.growth_batches=32"],
        "RigL from static's solution": ["topology.method=rigl", "training.start_from={runs}/static/{seed}"],
        "SRigL": ["topology.method=srigl"],
        "N:M RigL": ["topology.method=nm_rigl"],
        "GraNet": ["topology.method=granet"],
        "gradual pruning": ["topology.method=gradual_pruning"],
    },
    columns={
        f"{sparsity} % in {epochs} epochs": [f"topology.sparsity=0.{sparsity}", f"training.epochs={epochs}"]
        for epochs in (10, 50)
        for sparsity in (98, 95)
    },
    seeds=range(5),
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """The claim's comparisons; at last RigL trained for longer beside pruning."""
    lines = []
    for column in EXPERIMENT.columns:
        for other in ("static", "SNIP", "SET", "RigL from static's solution", "gradual pruning"):
            lines += compare(EXPERIMENT, found, column, "RigL", other)
        for other in ("RigL", "SET"):
            lines += compare(EXPERIMENT, found, column, "RigL (32 batches)", other)
    for sparsity in (98, 95):
        short, long = (f"{sparsity} % in {epochs} epochs" for epochs in (10, 50))
        lines += compare(EXPERIMENT, found, long, "RigL", "gradual pruning", short)
    return lines


if __name__ == "__main__":
    run(EXPERIMENT)
