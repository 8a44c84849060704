"""Time of a training step with sparse layers, beside the same network dense in torch and, if installed, sparselab.

    python experiments/sparse_speed.py [--width 4096] [--layers 4] [--batch 128] [--rounds 5]

All take turns; ratios are of times in the same round. SGD with momentum; the time of an update of the masks is told
apart, as it is paid once every delta_t steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from sparsify.methods.rigl import RigL
from sparsify.nn import SparseLinear
from sparsify.randomness import generator
from sparsify.topology.densities import count_nonzeros
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.topology.select import random_positions
from sparsify.training.compute import positions_of
from sparsify.training.step import Topology, TrainState, finish_step, record_gradients

Build = Callable[[int], nn.Module]


def network(layer: Build, width: int, count: int) -> nn.Module:
    """Layers of width x width with ReLU between them."""
    parts = [part for _ in range(count) for part in (layer(width), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def sparse_layer(sparsity: float) -> Build:
    """Ours, with random connections."""
    random = generator(0, "masks")

    def build(width: int) -> nn.Module:
        count = count_nonzeros((width, width), sparsity)
        return SparseLinear(width, width, random_positions(width * width, count, random))

    return build


def stepper(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, nesterov: bool = False) -> Callable[[], None]:
    """A training step of a model whose output is [..., classes], for labels [...]."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=nesterov)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten()).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], least: float = 0.25) -> float:
    """Mean time of a step over about `least` seconds."""
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        step()
        steps += 1
    return (time.perf_counter() - start) / steps


def update_seconds(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Time of one step in which RigL replaces 30 % of the connections, new index arrays included."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    state = TrainState(model, optimizer, Masks({}, positions=positions_of(model)))
    topology = Topology(RigL(), UpdateSchedule(delta_t=1, alpha=0.3, t_end=9), seed=0)
    start = time.perf_counter()
    record_gradients(state, topology)
    nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten()).backward()
    finish_step(state, topology)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 4096), ("layers", 4), ("batch", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--sparsities", type=lambda text: [float(s) for s in text.split(",")], default=[0.8, 0.9, 0.95, 0.98]
    )
    given = parser.parse_args()
    torch.manual_seed(0)
    x, labels = torch.randn(given.batch, given.width), torch.randint(0, 10, (given.batch,))
    builds: dict[str, Build] = {"dense": lambda width: nn.Linear(width, width)}
    builds |= {f"sparse {sparsity}": sparse_layer(sparsity) for sparsity in given.sparsities}
    if importlib.util.find_spec("sparselab"):
        import sparselab

        builds |= {
            f"sparselab {s}": lambda width, s=s: sparselab.SparseLinear(width, width, sparsity=s) for s in (0.9,)
        }
    steps = {name: stepper(network(build, given.width, given.layers), x, labels) for name, build in builds.items()}
    for step in steps.values():
        step()
    times = [{name: seconds(step) for name, step in steps.items()} for _ in range(given.rounds)]
    for name in steps:
        ratios = [round_["dense"] / round_[name] for round_ in times]
        spread = f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:15} {median(r[name] for r in times) * 1e3:7.1f} ms a step, {spread} of dense's speed", flush=True)
    for sparsity in given.sparsities:
        model = network(sparse_layer(sparsity), given.width, given.layers)
        print(
            f"sparse {sparsity}: a step that updates the masks {update_seconds(model, x, labels) * 1e3:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
