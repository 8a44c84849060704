"""What holds after every step and every update, whatever the optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import registry
from sparsify.randomness import generator
from sparsify.recipe import load_recipe
from sparsify.topology.costs import plain_layers
from sparsify.topology.masks import Masks, random_masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.loop import train
from sparsify.training.optimizer import optimizer_names
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, apply_masks, finish_step


class Stranger(torch.optim.Optimizer):
    """An optimizer that the code has never heard of: odd slots, decay, and a pull away from zero."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["history"] = [torch.ones_like(weight), torch.ones_like(weight)]
                    state["nested"] = {"slot": torch.full_like(weight, 0.5)}
                    state["count"] = torch.zeros(())
                state["history"][0].add_(weight.grad).add_(0.1)
                state["nested"]["slot"].mul_(0.9).add_(0.01)
                state["count"] += 1
                weight.sub_(group["lr"] * (weight.grad + 0.01 * state["history"][0]))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "stranger": lambda p: Stranger(p, lr=0.01),
}
UPDATING = [name for name in registry.names("methods") if load_method(name).updates_masks]


def slots(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> list[torch.Tensor]:
    """Every tensor of the weight's shape in its state, found in a way of the test's own."""
    found, queue = [], [optimizer.state[weight]]
    while queue:
        item = queue.pop()
        if isinstance(item, torch.Tensor):
            found += [item] if item.shape == weight.shape else []
        elif isinstance(item, dict):
            queue += item.values()
        elif isinstance(item, (list, tuple)):
            queue += item
    return found


def start(optimizer: str, method: str, seed: int = 0) -> tuple[TrainState, Topology]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 4))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    masks = random_masks(plain_layers(shapes), "erdos_renyi_kernel", 0.7, generator(seed, "masks"))
    apply_masks(model, masks)
    schedule = UpdateSchedule(delta_t=4, alpha=0.5, t_end=30)
    return TrainState(model, OPTIMIZERS[optimizer](model.parameters()), masks), Topology(
        load_method(method), schedule, seed
    )


def backward(model: nn.Module, step: int) -> None:
    random = generator(1, "test", step)
    inputs, labels = torch.randn(8, 2, 6, 6, generator=random), torch.randint(0, 4, (8,), generator=random)
    nn.functional.cross_entropy(model(inputs), labels).backward()


@pytest.mark.parametrize("method", UPDATING)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_invariants_after_every_step(optimizer, method):
    state, topology = start(optimizer, method)
    allocated = state.masks.nonzeros()
    updates = 0
    for step in range(1, 41):
        before = state
        backward(state.model, step)
        state = finish_step(state, topology, clip_norm=1.0)
        parameters = dict(state.model.named_parameters())
        assert sum(state.masks.nonzeros().values()) <= sum(allocated.values())
        if not topology.method.moves_between_layers and not topology.method.count_tolerance((10, 10)):
            assert state.masks.nonzeros() == allocated
        for name, mask in state.masks.items():
            weight = parameters[name]
            assert not weight[~mask].any(), f"{name} is not zero outside of its mask after step {step}"
            grown = mask & ~before.masks[name]
            if state.updates > before.updates:
                assert not weight[grown].any()
                assert not any(slot[grown].any() for slot in slots(state.optimizer, weight))
        updates += state.updates > before.updates
    assert updates == state.updates == 7  # at 4, 8, ..., 28


def test_a_step_that_rigl_replaces_changes_no_kept_weight_and_no_bias():
    state, topology = start("sgd", "rigl")
    for step in range(1, 5):
        backward(state.model, step)
        kept_before = {n: p.detach().clone() for n, p in state.model.named_parameters()}
        before, state = state, finish_step(state, topology)
    assert state.updates == 1
    for name, weight in state.model.named_parameters():
        lasting = before.masks[name] & state.masks[name] if name in state.masks else torch.ones_like(weight).bool()
        assert torch.equal(weight[lasting], kept_before[name][lasting])


def test_set_takes_the_gradient_step_before_its_update():
    state, topology = start("sgd", "set")
    for step in range(1, 5):
        backward(state.model, step)
        bias = state.model[5].bias.detach().clone()
        state = finish_step(state, topology)
    assert state.updates == 1 and not torch.equal(state.model[5].bias, bias)


def test_rigl_grows_where_the_dense_gradient_is_largest():
    state, topology = start("sgd", "rigl")
    for step in range(1, 4):
        backward(state.model, step)
        state = finish_step(state, topology)
    backward(state.model, 4)
    gradient = {n: p.grad.clone() for n, p in state.model.named_parameters()}
    before, state = state, finish_step(state, topology)
    for name, mask in state.masks.items():
        grown, absent = mask & ~before.masks[name], ~mask
        if grown.any() and absent.any():
            assert gradient[name][grown].abs().min() >= gradient[name][absent & ~before.masks[name]].abs().max()


def test_growth_looks_at_the_gradients_of_several_batches():
    """At those of the steps 2 to 4, without the one that is not finite, and at none of them for the next update."""
    state, topology = start("sgd", "rigl")
    topology = replace(topology, schedule=replace(topology.schedule, growth_batches=3))
    total = {name: torch.zeros_like(mask, dtype=torch.float32) for name, mask in state.masks.items()}
    for step in range(1, 5):
        backward(state.model, step)
        if step == 3:
            state.model[3].weight.grad[0, 0] = float("nan")
        elif step > 1:
            total = {name: sum_ + state.parameters[name].grad for name, sum_ in total.items()}
        before, state = state, finish_step(state, topology)
        assert set(state.gathered) == (set(total) if step in (2, 3) else set())
    assert state.updates == 1
    for name, mask in state.masks.items():
        grown, absent = mask & ~before.masks[name], ~mask & ~before.masks[name]
        assert grown.any() and total[name][grown].abs().min() >= total[name][absent].abs().max()


def test_connection_dropped_and_grown_at_once_keeps_value_and_slots():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, 1.0, 2.0, 0.0]]))
    masks = Masks({"weight": torch.tensor([[True, True, True, False]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.tensor([[5.0, 6.0, 7.0, 0.0]])
    topology = Topology(load_method("rigl"), UpdateSchedule(delta_t=1, alpha=0.4, t_end=10, decay="constant"), 0)
    model.weight.grad = torch.tensor([[9.0, 0.0, 0.0, 1.0]])  # 0 is dropped, and has the largest gradient
    state = finish_step(TrainState(model, optimizer, masks), topology)
    assert state.masks["weight"].tolist() == [[True, True, True, False]]
    assert model.weight.tolist() == [[pytest.approx(0.1), 1.0, 2.0, 0.0]]
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[5.0, 6.0, 7.0, 0.0]]


def test_update_with_a_gradient_that_is_not_finite_is_put_off_not_lost():
    state, topology = start("sgd", "rigl")
    for step in range(1, 5):
        backward(state.model, step)
        if step == 4:
            state.model[3].weight.grad[0, 0] = float("inf")
        weights = state.model[3].weight.detach().clone()
        state = finish_step(state, topology)
    assert state.update_pending and state.updates == 0
    assert torch.equal(weights, state.model[3].weight)
    backward(state.model, 5)
    state = finish_step(state, topology)
    assert not state.update_pending and state.updates == 1


def test_methods_that_do_not_update_keep_their_masks():
    for method in set(registry.names("methods")) - set(UPDATING):
        state, topology = start("sgd", method)
        digest = state.masks.digest()
        for step in range(1, 13):
            backward(state.model, step)
            state = finish_step(state, topology)
        assert state.masks.digest() == digest and state.updates == 0


def test_optimizers_are_found_by_their_class_names():
    found = optimizer_names()
    assert found["sgd"] is torch.optim.SGD and found["adamw"] is torch.optim.AdamW
    assert "lbfgs" not in found and "optimizer" not in found


def test_the_memory_format_changes_no_choice():
    """Masks are applied in the format of the weights, where devices fuse it; connections are counted as ever."""
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        state, topology = start("sgd", "rigl")
        state.model.to(memory_format=layout)
        for step in range(1, 14):
            backward(state.model, step)
            state = finish_step(state, topology)
        kernel, factor = state.model[0].weight, state.masks.factors(state.parameters)["0.weight"]
        assert kernel.is_contiguous(memory_format=layout) and factor.stride() == kernel.stride()
        ends.append((state, {name: weight.detach() for name, weight in state.model.named_parameters()}))
    (first, weights), (second, others) = ends
    assert first.updates == 3 and first.masks.digest() == second.masks.digest()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-6)


def test_recipes_can_ask_for_channels_last(tmp_path):
    changes = ['model={name="wide_resnet", depth=10, width=1}', "training.steps=4", "topology.delta_t=2"]
    lines = []
    for layout in ("false", "true"):
        recipe = load_recipe(None, [*changes, f"training.channels_last={layout}"])
        result = train(recipe, tmp_path / layout)
        assert all(weight.is_contiguous() for weight in result.model.parameters()) == (layout == "false")
        lines.append(result.line)
    assert lines[0]["test_loss"] == pytest.approx(lines[1]["test_loss"], rel=1e-3)
    assert lines[0]["updates"] == lines[1]["updates"] == 1
