"""Time of a training step of WideResNet-22-2 with sparse convolutions, beside the same network dense in torch.

    python experiments/sparse_speed_convolutions.py [--distribution uniform] [--batch 128] [--rounds 5] [--profile]

Dense is the faster of torch's two orders of memory. All take turns; ratios are of times in the same round. SGD with
momentum; a step that updates the masks, and writes code anew, is told apart. --profile says where the time goes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from sparse_speed import seconds, stepper, update_seconds
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sparsify.data import data_info
from sparsify.recipe import load_recipe
from sparsify.training.snapshot import build_network
from sparsify.training.sparse_network import build_sparse_network


def network(distribution: str, sparsity: float) -> nn.Module:
    """The recipe's network at this sparsity, sparse unless that is 0."""
    changes = [f"topology.distribution={distribution}", f"topology.sparsity={sparsity}"]
    recipe, info = load_recipe("wrn-22-2-cifar10", changes), data_info("cifar10", {})
    return (build_sparse_network if sparsity else build_network)(recipe, info)[0]


def where(step: Callable[[], None], most: int = 8) -> str:
    """The operations that a step spends most time in."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)[:most]
    return ", ".join(f"{event.key} {event.self_cpu_time_total / 1e3:.1f} ms" for event in events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distribution", default="uniform", choices=["uniform", "erdos_renyi_kernel"])
    for name, default in (("batch", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--sparsities", type=lambda text: [float(s) for s in text.split(",")], default=[0.8, 0.9, 0.95, 0.98]
    )
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    x, labels = torch.randn(given.batch, 3, 32, 32), torch.randint(0, 10, (given.batch,))
    steps = {"dense": stepper(network(given.distribution, 0.0), x, labels, nesterov=True)}
    last: nn.Module = network(given.distribution, 0.0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps["dense, channels last"] = stepper(
        last, x.contiguous(memory_format=torch.channels_last), labels, nesterov=True
    )
    models = {f"sparse {s}": network(given.distribution, s) for s in given.sparsities}
    steps |= {name: stepper(model, x, labels, nesterov=True) for name, model in models.items()}
    for step in steps.values():
        step()
    times = [{name: seconds(step, 0.5) for name, step in steps.items()} for _ in range(given.rounds)]
    for name in steps:
        ratios = [min(round_["dense"], round_["dense, channels last"]) / round_[name] for round_ in times]
        spread = f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:20} {median(r[name] for r in times) * 1e3:7.1f} ms a step, {spread} of dense's speed", flush=True)
        if given.profile:
            print(f"    {where(steps[name])}", flush=True)
    for name, model in models.items():
        update = update_seconds(model, x, labels)
        print(f"{name}: a step that updates the masks {update * 1e3:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
