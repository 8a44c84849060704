"""A loop of the user's own: as exact as ours, with everything that such loops do."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch import distributed as dist
from torch import nn

from sparsify.errors import CheckpointError, RecipeError
from sparsify.randomness import generator
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.own_loop import SparseOptimizer
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, finish_step

STEPS, SETTINGS = 24, {"sparsity": 0.8, "delta_t": 4, "alpha": 0.5}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def loss(model: nn.Module, step: int, rows: slice = slice(None)) -> torch.Tensor:
    random = generator(1, "test", step)
    inputs, labels = torch.randn(8, 12, generator=random), torch.randint(0, 4, (8,), generator=random)
    return nn.functional.cross_entropy(model(inputs[rows]), labels[rows])


def wrap(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> SparseOptimizer:
    return SparseOptimizer(model, optimizer, torch.zeros(1, 12), steps=STEPS, **{**SETTINGS, **settings})


def run(sparse: SparseOptimizer, model: nn.Module, spend: Callable[[], object], steps: range) -> None:
    for step in steps:
        loss(model, step).backward()
        spend()
        for name, mask in sparse.masks.items():
            assert not dict(model.named_parameters())[name][~mask].any()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_three_lines_do_what_our_loop_does():
    model = build()
    sparse = wrap(model, adam(model))
    twin = build()
    twin.load_state_dict(model.state_dict())
    schedule = UpdateSchedule(4, 0.5, round(0.75 * STEPS))
    counts, method = sparse.masks.nonzeros(), load_method("rigl")
    state, topology = TrainState(twin, adam(twin), sparse.masks), Topology(method, schedule, 0, counts, counts)
    run(sparse, model, sparse.step, range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        loss(twin, step).backward()
        state = finish_step(state, topology)
    assert sparse.state.updates == state.updates == 4 and sparse.masks.nonzeros() == counts
    assert sparse.masks.digest() == state.masks.digest() and torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("method", ["rigl", "set", "snip", "granet", "snfs"])
def test_halves_around_the_optimizer_are_the_whole(method):
    models = build(), build()
    optimizers = [adam(model) for model in models]
    whole, halves = (wrap(m, o, method=method) for m, o in zip(models, optimizers, strict=True))

    def spend() -> None:
        halves.prepare()
        optimizers[1].step()
        halves.complete()

    run(whole, models[0], whole.step, range(1, STEPS + 1))
    run(halves, models[1], spend, range(1, STEPS + 1))
    assert whole.masks.digest() == halves.masks.digest() and torch.equal(weights(models[0]), weights(models[1]))


def test_gradients_add_up_over_backward_passes():
    models = build(), build()
    whole, parts = (wrap(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models)
    for step in range(1, STEPS + 1):
        loss(models[0], step).backward()
        whole.step()
        for rows in (slice(0, 4), slice(4, 8)):
            (loss(models[1], step, rows) / 2).backward()
        parts.step()
    torch.testing.assert_close(weights(models[0]), weights(models[1]))
    assert parts.state.step == STEPS and parts.state.updates == 4


def test_a_gradient_scaler_takes_it_for_an_optimizer():
    models = build(), build()
    plain, scaled = (wrap(model, adam(model)) for model in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    run(plain, models[0], plain.step, range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        scaler.scale(loss(models[1], step)).backward()
        scaler.unscale_(scaled)
        nn.utils.clip_grad_norm_(models[1].parameters(), 1e6)
        scaler.step(scaled)
        scaler.update()
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-4, atol=1e-6)
    before, counted = weights(models[1]), scaled.state.step
    scaler.scale(loss(models[1], 1) * torch.inf).backward()
    scaler.step(scaled)
    scaler.update()
    assert torch.equal(before, weights(models[1])) and scaled.state.step == counted


def test_a_checkpoint_continues_as_if_nothing_had_happened(tmp_path):
    model = build()
    optimizer = adam(model)
    sparse = wrap(model, optimizer)
    run(sparse, model, sparse.step, range(1, 11))
    parts = {"model": model, "optimizer": optimizer, "sparse": sparse}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint.pt")
    run(sparse, model, sparse.step, range(11, STEPS + 1))
    again = build()
    optimizer = adam(again)
    resumed = wrap(again, optimizer, seed=0)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for name, part in {"model": again, "optimizer": optimizer, "sparse": resumed}.items():
        part.load_state_dict(content[name])
    run(resumed, again, resumed.step, range(11, STEPS + 1))
    assert torch.equal(weights(model), weights(again)) and sparse.masks.digest() == resumed.masks.digest()
    assert resumed.state.updates == sparse.state.updates
    early = build()
    early.load_state_dict(content["model"])
    with pytest.raises(CheckpointError, match="loaded before it was wrapped"):
        wrap(early, adam(early)).load_state_dict(content["sparse"])
    early.load_state_dict(content["model"])
    assert wrap(early, adam(early), state=content["sparse"]).masks.nonzeros() == sparse.masks.nonzeros()
    assert torch.equal(weights(early), torch.cat([tensor.flatten() for tensor in content["model"].values()]))
    other = nn.Linear(12, 5)
    with pytest.raises(CheckpointError, match="not of this network"):
        wrap(other, adam(other)).load_state_dict(content["sparse"])


def test_frozen_weights_stay_as_they_are():
    model = build()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    sparse = wrap(model, adam(model))
    run(sparse, model, sparse.step, range(1, 9))
    assert set(sparse.masks) == {"2.weight", "4.weight"} and torch.equal(model[0].weight, before)


def test_rules_reach_it_and_settings_are_checked():
    model = build()
    sparse = wrap(model, adam(model), layers={"layer:first": "dense", "4": {"sparsity": 0.5, "budget": "outside"}})
    assert set(sparse.masks) == {"2.weight", "4.weight"} and sparse.masks.nonzeros()["4.weight"] == 32
    with pytest.raises(RecipeError, match=r"topology\.sparsity"):
        wrap(model, adam(model), sparsity=1.5)
    with pytest.raises(RecipeError, match="small_dense"):
        wrap(model, adam(model), method="small_dense")
    with pytest.raises(RecipeError, match="Nothing in this network can be 80% sparse"):
        wrap(model, adam(model), layers={"*": "dense"})


def _rank(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    model = nn.parallel.DistributedDataParallel(build())
    sparse = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    share = 8 // size
    for step in range(1, STEPS + 1):
        loss(model, step, slice(rank * share, (rank + 1) * share)).backward()
        sparse.step()
    torch.save({"weights": weights(model), "digest": sparse.masks.digest()}, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # Python's shutdown meets gloo's threads, and now and then that aborts it


def test_ranks_of_distributed_data_parallel_hold_one_network(tmp_path):
    processes.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["digest"] == second["digest"] and torch.equal(first["weights"], second["weights"])
    model = build()
    sparse = wrap(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    run(sparse, model, sparse.step, range(1, STEPS + 1))
    torch.testing.assert_close(weights(model), first["weights"], rtol=1e-3, atol=1e-5)
