"""Matrices in a weight: taken apart, put together, shared out to, and updated each on its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsify.errors import RecipeError, SparsityError
from sparsify.randomness import generator
from sparsify.recipe import Topology as Settings
from sparsify.topology.costs import Layer, plain_layers
from sparsify.topology.densities import allocate, allocate_counts
from sparsify.topology.layers import find_layers
from sparsify.topology.masks import random_masks
from sparsify.topology.matrices import join, outputs_first, split, weight_counts
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, apply_masks, finish_step

LAYERS = {
    "linear": Layer("w", (6, 4), 1),
    "gates": Layer("w", (6, 4), 1, parts=3),
    "input first": Layer("w", (4, 6), 1, axis=1),
    "input first, gates": Layer("w", (4, 6), 1, axis=1, parts=3),
    "grouped": Layer("w", (6, 2, 3, 3), 1, groups=2),
    "transposed": Layer("w", (4, 6, 3), 1, axis=1),
    "transposed, grouped": Layer("w", (4, 3, 3), 1, axis=1, groups=2),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_join_undoes_split(layer):
    weight = torch.randn(layer.shape)
    parts = split(layer, weight)
    assert list(parts) == layer.matrices and all(part.shape == layer.matrix_shape for part in parts.values())
    assert torch.equal(join(layer, parts), weight)


def test_rows_of_a_transposed_convolution_are_its_outputs():
    """A channel whose row is zero puts out its bias alone, whatever comes in."""
    convolution = nn.ConvTranspose2d(4, 6, 3, groups=2)
    (layer,) = find_layers(convolution, torch.zeros(1, 4, 5, 5))
    for channel in range(6):
        keep = torch.ones(layer.matrix_shape)
        keep[channel] = 0
        with torch.no_grad():
            before = convolution.weight.clone()
            convolution.weight.mul_(join(layer, {layer.name: keep}))
            out = convolution(torch.randn(1, 4, 5, 5)) - convolution.bias.view(1, -1, 1, 1)
            convolution.weight.copy_(before)
        assert [not out[0, c].any() for c in range(6)] == [c == channel for c in range(6)]


def test_neurons_are_counted_along_the_outputs():
    layers = [replace(LAYERS["transposed, grouped"], name="t"), replace(LAYERS["gates"], name="g")]
    masks = random_masks(layers, "uniform", 0.9, generator(0, "masks"))
    for layer in layers:
        rows = outputs_first(layer, masks[layer.name]).flatten(1).any(1)
        assert torch.equal(masks.active_neurons()[layer.name], rows) and len(rows) == 6


def test_each_gate_has_its_own_share_of_the_connections():
    layers = [Layer("first", (8, 8), 1), Layer("gates", (60, 20), 1, parts=3)]
    counts = allocate_counts("erdos_renyi", layers, 0.8)
    assert set(counts) == {"first", "gates[0]", "gates[1]", "gates[2]"}
    alone = allocate_counts("erdos_renyi", plain_layers({"first": (8, 8), **{f"{i}": (20, 20) for i in range(3)}}), 0.8)
    assert counts["gates[0]"] == counts["gates[1]"] == alone["0"] and counts["first"] == alone["first"]
    masks = random_masks(layers, "erdos_renyi", 0.8, generator(0, "masks"))
    assert [int(part.sum()) for part in masks["gates"].chunk(3)] == [counts[f"gates[{i}]"] for i in range(3)]
    assert weight_counts(layers, counts) == masks.nonzeros()


@pytest.mark.parametrize("distribution", ["erdos_renyi", "erdos_renyi_kernel"])
def test_a_grouped_convolution_counts_as_its_groups_side_by_side(distribution):
    other = Layer("other", (64, 64), 1)
    grouped = allocate(distribution, [other, Layer("grouped", (32, 8, 3, 3), 1, groups=4)], 0.8)
    groups = plain_layers({f"group{i}": (8, 8, 3, 3) for i in range(4)})
    alone = allocate(distribution, [other, *groups], 0.8)
    assert grouped["grouped"] == pytest.approx(alone["group0"]) and grouped["other"] == pytest.approx(alone["other"])


@pytest.mark.parametrize("distribution", ["erdos_renyi", "erdos_renyi_kernel", "uniform"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_sparsity_of_its_own_inside_and_outside_the_budget(distribution, inside):
    layers = [Layer(f"{i}", (40, 40), 1) for i in range(4)]
    layers[2] = replace(layers[2], own=0.5, inside=inside)
    shares = allocate(distribution, layers, 0.8)
    assert shares["2"] == 0.5
    first_dense = distribution == "uniform"  # which is outside of the budget itself
    counted = [name for name in shares if (inside or name != "2") and not (first_dense and name == "0")]
    expected = 0.8 if not (inside and first_dense) else (0.8 * 4 - 0.5) / 3 * 2 / 3 + 0.5 / 3
    assert sum(shares[name] for name in counted) / len(counted) == pytest.approx(expected)


def test_what_the_others_cannot_make_up_for():
    layers = [replace(Layer("a", (40, 40), 1), own=0.0, inside=True), Layer("b", (10, 40), 1)]
    with pytest.raises(SparsityError, match=r"totals from 0\.000000 to below 0\.200000"):
        allocate("erdos_renyi", layers, 0.5)


def test_uniform_keeps_the_first_layer_dense_and_no_other_in_its_place():
    layers = [Layer("embedding", (10, 4), 0, sparse=False), Layer("a", (4, 4), 1), Layer("b", (4, 4), 1)]
    assert allocate("uniform", layers, 0.5) == {"a": 0.5, "b": 0.5}
    gates = [Layer("gates", (12, 4), 1, parts=3), Layer("b", (4, 4), 1)]
    assert allocate("uniform", gates, 0.5) == {"gates[0]": 0.0, "gates[1]": 0.0, "gates[2]": 0.0, "b": 0.5}
    own = [replace(layers[1], own=0.25), layers[2]]
    assert allocate("uniform", own, 0.5) == {"a": 0.25, "b": 0.5}


def test_rules_that_say_nothing_are_refused_in_the_recipe():
    for rule in ("thin", {}, {"sparsity": 0.5}, {"budget": "inside"}, {"sparsity": 1.0, "budget": "inside"},
                 {"sparsity": 0.5, "budget": "both"}, {"parts": 0}, {"parts": 3, "width": 2}, 0.5):  # fmt: skip
        with pytest.raises(ValueError, match="'head'"):
            Settings(layers={"head": rule})


class Everything(nn.Module):
    """A weight of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(6, 12, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose1d(12, 6, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.project = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):  # [n, 6, t]
        x = self.up(self.grouped(x)).transpose(1, 2)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.gru(x)[0] @ self.project


def start(method: str) -> tuple[TrainState, Topology]:
    torch.manual_seed(0)
    model = Everything()
    layers = find_layers(model, torch.zeros(1, 6, 4))
    masks = random_masks(layers, "erdos_renyi_kernel", 0.6, generator(0, "masks"))
    apply_masks(model, masks)
    final = allocate_counts("erdos_renyi_kernel", layers, 0.6)
    topology = Topology(load_method(method), UpdateSchedule(2, 0.5, 20), 0, final, final, tuple(layers))
    return TrainState(model, torch.optim.Adam(model.parameters(), lr=0.01), masks), topology


@pytest.mark.parametrize("method", ["rigl", "set", "srigl", "nm_rigl"])
def test_every_matrix_keeps_its_count_and_only_its_own_connections(method):
    state, topology = start(method)
    layers = {layer.name: layer for layer in topology.layers if layer.sparse}
    assert layers.keys() == state.masks.keys() and len(layers) == 7
    changed = set()
    for step in range(1, 11):
        random = generator(1, "test", step)
        state.model(torch.randn(4, 6, 4, generator=random)).square().mean().backward()
        before, state = state, finish_step(state, topology)
        for name, mask in state.masks.items():
            assert mask.shape == state.parameters[name].shape and not state.parameters[name][~mask].any()
            for part, own in split(layers[name], mask).items():
                slack = topology.method.count_tolerance(tuple(own.shape))
                assert abs(int(own.sum()) - topology.final[part]) <= slack, part
                if not torch.equal(own, split(layers[name], before.masks[name])[part]):
                    changed.add(part)
    assert {"attention.in_proj_weight[0]", "gru.weight_hh_l0[2]", "up.weight", "project"} <= changed


def test_rigl_grows_in_each_gate_where_that_gate_s_gradient_is_largest():
    state, topology = start("rigl")
    layers = {layer.name: layer for layer in topology.layers}
    for step in (1, 2):
        state.model(torch.randn(4, 6, 4, generator=generator(1, "test", step))).square().mean().backward()
        gradients = {name: state.parameters[name].grad.clone() for name in state.masks}
        before, state = state, finish_step(state, topology)
    assert state.updates == 1
    for name, mask in state.masks.items():
        parts = (split(layers[name], tensor) for tensor in (mask, before.masks[name], gradients[name].abs()))
        for now, then, gradient in zip(*(part.values() for part in parts), strict=True):
            grown, left = now & ~then, ~now & ~then
            if grown.any() and left.any():
                assert gradient[grown].min() >= gradient[left].max()


def test_costs_count_the_outputs_wherever_they_are():
    turned, usual = Layer("t", (5, 3), 7, axis=1), Layer("u", (3, 5), 7)
    assert turned.flops(4) == usual.flops(4) == (2 * 4 + 3) * 7
    assert math.prod(turned.matrix_shape) == turned.size


def test_a_selector_of_nothing_ends_before_training():
    from sparsify.recipe import load_recipe
    from sparsify.sources import open_source

    assert load_recipe(None, ['topology.layers={"*.weight"="dense"}']).topology.layers == {"*.weight": "dense"}
    with pytest.raises(RecipeError, match="Near it are: 5.weight"):
        open_source("lenet-300-100-digits", ['topology.layers={"55.weight"="dense"}'])
