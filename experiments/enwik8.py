"""A character GRU on enwik8, 75 % sparse: methods at equal steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _experiment import Experiment, compare, means, run

EXPERIMENT = Experiment(
    name="enwik8",
    title="enwik8, character GRU",
    text="""\
Claim: on a recurrent network too RigL is ahead of SET and static, and pruning, which is dense for most of training,
stays ahead of RigL. The paper's network reads WikiText-103 for 200,000 steps of 512 characters at 512 units; this one
has 256 units, reads enwik8 in sequences of 128, and updates 30 times in 600 steps. All take as many steps. Why RigL is
behind SET here: the largest gradients lie together at few units, so that its connections gather there. SRigL, which
grows by the same gradients but gives each neuron as many connections, is the test of that, and makes up most of it.
That one batch's gradient is noisy counts for less: growth by 16 batches makes up a quarter.""",
    recipe="char-gru-enwik8",
    rows={
        "dense": ["topology.method=dense"],
        "static": ["topology.method=static"],
        "SET": ["topology.method=set"],
        "RigL": ["topology.method=rigl"],
        "RigL (16 batches)": ["topology.method=rigl", "topology.growth_batches=16"],
        "SRigL": ["topology.method=srigl"],
        "gradual pruning": ["topology.method=gradual_pruning"],
    },
    columns={"75 % in 600 steps": ["topology.sparsity=0.75", "training.steps=600"]},
    seeds=range(3),
    metric="test_bits_per_character",
    scale=1.0,
    unit="bits per character on the first 100,000 bytes of the test text, the fewer the better",
    more_is_better=False,
    findings=lambda found: findings(found),
)


def findings(found: Mapping[str, Any]) -> list[str]:
    """The claim's comparisons."""
    column = next(iter(EXPERIMENT.columns))
    pairs = [("SET", "static"), ("RigL", "static"), ("RigL", "SET"), ("SRigL", "RigL"), ("gradual pruning", "RigL")]
    pairs += [("RigL (16 batches)", other) for other in ("RigL", "SET", "static")]
    lines = [line for row, other in pairs for line in compare(EXPERIMENT, found, column, row, other)]
    return lines + means(found, column, ("static", "SET", "RigL", "RigL (16 batches)", "SRigL"))


if __name__ == "__main__":
    run(EXPERIMENT)
