"""Training a network whose dense weights no memory here holds: three layers of 65,536 x 65,536, 99.9 % sparse.

Dense, the weights, their gradients and their momentum are 155 GB. Here all are as long as the non-zeros, and each
mask update looks at every one of the 12.9 billion gradients, a block of rows at a time.

    python experiments/sparse_memory.py [--width 65536] [--sparsity 0.999] [--steps 12]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import nn

from sparsify.methods.rigl import RigL
from sparsify.nn import SparseLinear, sparse_layers
from sparsify.randomness import generator
from sparsify.topology.densities import count_nonzeros
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.topology.select import random_positions
from sparsify.training.compute import positions_of
from sparsify.training.step import Topology, TrainState, finish_step, record_gradients

LAYERS, BATCH, SAMPLES = 3, 16, 64


def build(width: int, sparsity: float) -> nn.Module:
    """Layers of width x width with ReLU between them, values as He et al. draw them for the connections that exist."""
    random, count = generator(0, "masks"), count_nonzeros((width, width), sparsity)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layer = SparseLinear(width, width, random_positions(width * width, count, random))
        nn.init.normal_(layer.weight, std=(2 * width / count) ** 0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def peak() -> float:
    """Largest memory of this process so far, in GB; Python, torch and the data set included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=65_536)
    parser.add_argument("--sparsity", type=float, default=0.999)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build(given.width, given.sparsity)
    counts = {name: layer.pattern.count for name, layer in sparse_layers(model).items()}
    size = LAYERS * given.width**2
    print(f"{sum(counts.values()):,} of {size:,} weights; dense with gradient and momentum: {size * 12 / 1e9:,.1f} GB")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    state = TrainState(model, optimizer, Masks({}, positions=positions_of(model)))
    topology = Topology(RigL(), UpdateSchedule(delta_t=given.steps // 3, alpha=0.3, t_end=given.steps - 1), seed=0)
    inputs = torch.randn(SAMPLES, given.width)
    labels = torch.randint(0, 10, (SAMPLES,))
    for step in range(1, given.steps + 1):
        start = time.perf_counter()
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % SAMPLES
        record_gradients(state, topology)
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        loss.backward()
        before, state = state, finish_step(state, topology)
        seconds = time.perf_counter() - start
        update = f", {state.grown - before.grown:,} connections grown" if state.updates > before.updates else ""
        print(f"step {step}: loss {loss.item():.4f}, {seconds:.2f} s, peak {peak():.2f} GB{update}", flush=True)
    assert state.masks.nonzeros() == counts


if __name__ == "__main__":
    main()
