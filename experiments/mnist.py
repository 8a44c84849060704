"""LeNet-300-100 on MNIST: every method at 98 % and 95 %, and RigL from a bad solution."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from _experiment import Experiment, run, scores

EXPERIMENT = Experiment(
    name="mnist",
    title="MNIST, LeNet-300-100",
    text="""\
Claim: at equal cost RigL beats static, SNIP and SET, and it does so from anywhere, also from where static training
ended badly (*from static's solution*: weights and masks of the static run of the same seed, trained again).""",
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
    """The claim's comparisons, seed by seed, where both sides were run."""
    lines = []
    for column in EXPERIMENT.columns:
        for other in ("static", "SNIP", "SET", "RigL from static's solution"):
            pair = [scores(EXPERIMENT, found, row, column) for row in ("RigL", other)]
            count = min(map(len, pair))
            if count < 2:
                continue
            gaps = [a - b for a, b in zip(*(side[:count] for side in pair), strict=True)]
            error = stdev(gaps) / count**0.5
            word = "ahead of" if fmean(gaps) > 2 * error else "behind" if fmean(gaps) < -2 * error else "level with"
            lines.append(f"{column}: RigL is {word} {other} by {fmean(gaps):+.2f} ± {error:.2f} (paired by seed).")
    return lines


if __name__ == "__main__":
    run(EXPERIMENT)
