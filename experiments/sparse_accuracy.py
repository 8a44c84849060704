"""LeNet-300-100 on MNIST with dense weights times masks, and with layers that hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from _experiment import Experiment, run, scores

COLUMN = "98 % in 10 epochs"
EXPERIMENT = Experiment(
    name="sparse_accuracy",
    title="Masked and sparse computation, LeNet-300-100 on MNIST",
    text="""\
Claim: what a run computes with decides what it costs and not what it learns. RigL, once with dense weights times masks
and once with `--compute sparse`; runs of one seed draw the same numbers, and part because float32 sums are taken in
another order.""",
    recipe="lenet-300-100-mnist",
    rows={"masked": [], "sparse": []},
    columns={COLUMN: ["topology.sparsity=0.98", "training.epochs=10"]},
    compute={("sparse", COLUMN): "sparse"},
    seeds=range(5),
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """How far the means are apart, beside the spread of the seeds."""
    masked, sparse = (scores(EXPERIMENT, found, row, COLUMN) for row in ("masked", "sparse"))
    if min(len(masked), len(sparse)) < 2:
        return []
    gap, spread = fmean(sparse) - fmean(masked), min(stdev(masked), stdev(sparse))
    word = "within" if abs(gap) <= spread else "outside"
    return [f"Sparse is {gap:+.2f} from masked, {word} one standard deviation of either's seeds ({spread:.2f})."]


if __name__ == "__main__":
    run(EXPERIMENT)
