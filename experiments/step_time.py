"""What sparse training adds to a step: RigL beside the same network in a plain torch loop, in turns, on one batch.

    python experiments/step_time.py wrn-22-2-cifar10 [--device cuda --precision bfloat16 --channels-last]

A step is forward, backward and what follows. The overhead is averaged over the steps from one update of the masks to
the next, one of which is the update itself; medians over the rounds, the smallest and the largest beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from sparsify.data import data_info
from sparsify.recipe import load_recipe
from sparsify.training.optimizer import build_optimizer
from sparsify.training.precision import autocast
from sparsify.training.snapshot import build_network
from sparsify.training.start import build_topology, choose_device
from sparsify.training.step import TrainState, finish_step

NEVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--batch", type=int, help="samples a step, by default the recipe's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round, in turns")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    recipe, place = load_recipe(given.recipe, given.set), choose_device(given.device)
    info = data_info(recipe.data.name, recipe.data.options)
    batch, delta_t = given.batch or recipe.training.batch_size, recipe.topology.delta_t
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    inputs = torch.randn(batch, *info.input_shape, device=place)
    inputs = inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs
    labels = torch.randint(0, info.classes, (batch,), device=place)

    def prepared(sparsity: float | None) -> tuple[nn.Module, torch.optim.Optimizer, list, object]:
        model, layers, masks = build_network(recipe, info, sparsity)
        model.to(place, memory_format=layout) if inputs.ndim == 4 else model.to(place)
        return model, build_optimizer(model, recipe.optimizer), layers, masks.to(place)

    def backward(model: nn.Module) -> None:
        with autocast(given.precision, place):
            outputs = model(inputs)
        nn.functional.cross_entropy(outputs.float(), labels).backward()

    dense, dense_optimizer, _, _ = prepared(0.0)
    model, optimizer, layers, masks = prepared(None)
    plain = build_topology(recipe, NEVER, layers, masks)
    always = replace(plain, schedule=replace(plain.schedule, delta_t=1))
    plain = replace(plain, schedule=replace(plain.schedule, delta_t=NEVER))
    state = TrainState(model, optimizer, masks)

    def dense_step() -> None:
        backward(dense)
        dense_optimizer.step()
        dense_optimizer.zero_grad(set_to_none=True)

    def sparse_step(topology: object) -> None:
        nonlocal state
        backward(model)
        state = finish_step(state, topology)

    def seconds(function: Callable[[], None]) -> float:
        if place.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if place.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for warm in (dense_step, lambda: sparse_step(plain), lambda: sparse_step(always)):
        warm()
        warm()
    found = []
    for _ in range(given.rounds):
        turns = []
        for turn in range(given.steps):
            pair = [dense_step, lambda: sparse_step(plain)]
            times = [seconds(each) for each in (pair if turn % 2 else reversed(pair))]
            turns.append(times if turn % 2 else times[::-1])
        base, step = (statistics.median(column) for column in zip(*turns, strict=True))
        update = seconds(lambda: sparse_step(always))
        ratio = ((delta_t - 1) * step + update) / (delta_t * base)
        found.append({"dense_ms": base * 1e3, "sparse_ms": step * 1e3, "update_ms": update * 1e3, "ratio": ratio})
    ratios = [each["ratio"] for each in found]
    line = {key: statistics.median(each[key] for each in found) for key in found[0]}
    line |= {"lowest": min(ratios), "highest": max(ratios), "delta_t": delta_t, "batch": batch, "device": str(place)}
    if given.json:
        print(json.dumps(line))
        return
    print(
        f"{recipe.name}, batch {batch}, {place}: dense step {line['dense_ms']:.1f} ms, {recipe.topology.method} step "
        f"{line['sparse_ms']:.1f} ms, update {line['update_ms']:.1f} ms; averaged over {delta_t} steps "
        f"{line['ratio']:.3f}x [{min(ratios):.3f}, {max(ratios):.3f}] of dense"
    )


if __name__ == "__main__":
    main()
