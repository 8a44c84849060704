"""What every method has to pass, found by its file. What it needs is read from the object, never from its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify import registry
from sparsify.methods import Method
from sparsify.randomness import generator
from sparsify.topology.connections import Connections, Moment, Network
from sparsify.topology.costs import plain_layers
from sparsify.topology.densities import allocate_counts
from sparsify.topology.masks import Masks, random_masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, apply_masks, finish_step, start_by_gradient

METHODS = {name: load_method(name) for name in registry.names("methods")}
SHAPES = {"0.weight": (8, 4, 3, 3), "3.weight": (20, 128), "5.weight": (6, 20)}
STEPS, DELTA_T = 48, 4


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def build() -> nn.Module:
    layers = [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 20), nn.ReLU(), nn.Linear(20, 6)]
    return nn.Sequential(*layers)


def start(method: Method, sparsity: float = 0.8, seed: int = 0) -> tuple[TrainState, Topology]:
    torch.manual_seed(seed)
    model = build()
    target = sparsity if method.sparse else 0.0
    initial = method.initial_sparsity(sparsity)
    masks = random_masks(plain_layers(SHAPES), "erdos_renyi_kernel", initial, generator(seed, "masks"), method.draw)
    apply_masks(model, masks)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-2)
    schedule = UpdateSchedule(delta_t=DELTA_T, alpha=0.5, t_end=STEPS - DELTA_T)
    final = allocate_counts("erdos_renyi_kernel", plain_layers(SHAPES), target)
    state, topology = TrainState(model, optimizer, masks), Topology(method, schedule, seed, masks.nonzeros(), final)
    if method.starts_with_update:
        backward(model, 0)
        state = start_by_gradient(state, topology)
    return state, topology


def backward(model: nn.Module, step: int) -> None:
    random = generator(1, "test", step)
    inputs, labels = torch.randn(8, 4, 6, 6, generator=random), torch.randint(0, 6, (8,), generator=random)
    nn.functional.cross_entropy(model(inputs), labels).backward()


def run(state: TrainState, topology: Topology, steps: int = STEPS) -> TrainState:
    for step in range(state.step + 1, state.step + steps + 1):
        backward(state.model, step)
        state = finish_step(state, topology, clip_norm=1.0)
    return state


def assert_counts(state: TrainState, topology: Topology) -> None:
    """Each layer, or the network, has what is planned, up to what a pattern may leave out."""
    method, progress = topology.method, topology.schedule.progress(state.step)
    initial, final = topology.initial, topology.final
    tolerance = {name: method.count_tolerance(shape) for name, shape in SHAPES.items()}
    counts = state.masks.nonzeros()
    if method.moves_between_layers:
        planned = method.planned_count(sum(initial.values()), sum(final.values()), progress)
        assert abs(sum(counts.values()) - planned) <= sum(tolerance.values())
        return
    for name, count in counts.items():
        assert abs(count - method.planned_count(initial[name], final[name], progress)) <= tolerance[name], name


def assert_zeros(state: TrainState) -> None:
    parameters = dict(state.model.named_parameters())
    for name, mask in state.masks.items():
        assert not parameters[name][~mask].any(), f"{name} is not zero outside of its mask"


def test_counts_and_zeros_at_every_step_and_slots_at_every_update(method):
    state, topology = start(method)
    planned = topology.schedule.last_update() // DELTA_T if method.updates_masks else 0
    first = state.updates
    for _ in range(STEPS):
        before, state = state, run(state, topology, 1)
        assert_zeros(state)
        if state.updates == before.updates:
            assert state.masks.digest() == before.masks.digest(), "masks changed without an update"
            continue
        assert_counts(state, topology)
        for name, weight in state.model.named_parameters():
            if name in state.masks:
                new = ~(before.masks[name] & state.masks[name])  # grown now, or gone, or never there
                assert not weight[new].any()
                slots = state.optimizer.state[weight]
                assert not slots["exp_avg"][new].any() and not slots["exp_avg_sq"][new].any()
    assert state.updates - first == planned
    assert_counts(state, topology)


def test_same_seed_same_training_and_another_seed_another(method):
    digests = []
    for seed in (0, 0, 1):
        state = run(*start(method, seed=seed))
        weights = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        digests.append((state.masks.digest(), weights))
    assert digests[0][0] == digests[1][0] and torch.equal(digests[0][1], digests[1][1])
    assert not torch.equal(digests[0][1], digests[2][1])


def test_masks_that_change_do_change(method):
    state, topology = start(method)
    after = run(state, topology)
    assert (after.masks.digest() != state.masks.digest()) == method.updates_masks


def test_masks_chosen_before_training_are_chosen_among_all_weights(method):
    if not method.starts_with_update:
        pytest.skip("starts as drawn")
    state, topology = start(method)
    assert state.updates == 1 and state.explored is not None and state.explored.rate() == 1
    assert_counts(state, topology)
    assert_zeros(state)


def test_state_survives_a_round_trip(method, tmp_path):
    """Stopped in the middle, written as plain tensors and numbers, and read: the end is the same."""
    whole = run(*start(method))
    state, topology = start(method)
    state = run(state, topology, STEPS // 2 + 1)
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "masks": dict(state.masks.tensors),
        "momentum": dict(state.momentum),
        "memory": dict(state.memory),
    }
    torch.save(content, tmp_path / "state.pt")
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh, topology = start(method, seed=0)
    fresh.model.load_state_dict(content["model"])
    fresh.optimizer.load_state_dict(content["optimizer"])
    fields = {name: content[name] for name in ("momentum", "memory")}
    fresh = replace(fresh, step=state.step, masks=Masks(content["masks"]), **fields)
    fresh = run(fresh, topology, STEPS - state.step)
    assert fresh.masks.digest() == whole.masks.digest()
    for name, weight in fresh.model.named_parameters():
        assert torch.equal(weight, dict(whole.model.named_parameters())[name])
    assert fresh.memory == whole.memory


def test_sparsity_zero_is_dense_training(method):
    """Whatever the method drops, it takes back: every weight exists all the time."""
    state, topology = start(method, sparsity=0.0)
    for _ in range(STEPS):
        state = run(state, topology, 1)
        assert all(mask.all() for mask in state.masks.values())


def layer(shape: tuple[int, ...], mask: Tensor, count: int, random: torch.Generator, **changes: Any) -> Connections:
    gradient, momentum = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    weight = torch.randn(shape, generator=random) * mask
    return Connections(mask, weight, gradient, random, momentum, int(mask.sum()), count, **changes)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_one_weight_a_layer(method, fraction):
    """One connection in each layer stays one, or as many as the pattern cannot do without."""
    if not (method.updates_masks or method.starts_with_update):
        pytest.skip("never chooses anew")
    random = generator(0, "test")
    network = Network({n: layer(s, method.draw(s, 1, random), 1, random) for n, s in SHAPES.items()})
    masks, _ = method.update(network, Moment(fraction, 1.0), method.memory())
    assert_update(method, network, masks)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_empty_layer_harms_no_other(method, fraction):
    """A layer without any connection is legal; the others go on."""
    if not (method.updates_masks or method.starts_with_update):
        pytest.skip("never chooses anew")
    random = generator(0, "test")
    counts = {"0.weight": 100, "3.weight": 0, "5.weight": 40}
    layers = {n: layer(s, method.draw(s, counts[n], random), counts[n], random) for n, s in SHAPES.items()}
    assert not layers["3.weight"].mask.any()
    masks, _ = method.update(Network(layers), Moment(fraction, 1.0), method.memory())
    assert_update(method, Network(layers), masks)
    assert masks["0.weight"].any() and masks["5.weight"].any()


@pytest.mark.parametrize("name", SHAPES)
def test_network_of_one_layer_and_equal_scores(method, name):
    """Ties do not change how many are chosen."""
    if not (method.updates_masks or method.starts_with_update):
        pytest.skip("never chooses anew")
    random, shape = generator(0, "test"), SHAPES[name]
    one = layer(shape, method.draw(shape, 60, random), 60, random)
    same = torch.ones(shape)
    flat = replace(one, weight=same * one.mask, gradient=same, momentum=same)
    masks, _ = method.update(Network({name: flat}), Moment(0.5, 1.0), method.memory())
    assert_update(method, Network({name: flat}), masks)


def assert_update(method: Method, network: Network, masks: dict[str, Tensor]) -> None:
    """An update at constant sparsity: counts are kept, and nothing was changed in place."""
    assert masks.keys() == network.keys()
    assert all(mask.dtype == torch.bool and mask.shape == network[name].mask.shape for name, mask in masks.items())
    slack = {name: method.count_tolerance(tuple(layer.mask.shape)) for name, layer in network.items()}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    if method.moves_between_layers:
        assert abs(sum(counts.values()) - network.count) <= sum(slack.values())
    else:
        assert all(abs(counts[name] - layer.count) <= slack[name] for name, layer in network.items())


def test_drawn_masks_have_the_count_that_they_are_asked_for(method):
    for shape in SHAPES.values():
        size = torch.Size(shape).numel()
        for count in (0, 1, size // 7, size // 2, size - 1, size):
            mask = method.draw(shape, count, generator(0, "test"))
            assert mask.shape == shape and abs(int(mask.sum()) - count) <= method.count_tolerance(shape)
        assert method.draw(shape, size, generator(0, "test")).all()
        assert not method.draw(shape, 0, generator(0, "test")).any()


def test_gradient_that_is_not_finite_puts_the_update_off(method):
    if not method.updates_masks:
        pytest.skip("never updates")
    state, topology = start(method)
    state = run(state, topology, DELTA_T - 1)
    weights = {n: p.detach().clone() for n, p in state.model.named_parameters()}
    backward(state.model, DELTA_T)
    state.model[0].bias.grad[0] = float("nan")
    state = finish_step(state, topology)
    assert state.update_pending and state.updates == 0
    assert all(torch.equal(weights[n], p) for n, p in state.model.named_parameters())
    state = run(state, topology, 1)
    assert not state.update_pending and state.updates == 1
    assert_counts(state, topology)
    assert_zeros(state)
