"""Block by block the same connections are chosen as from dense tensors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsify import registry
from sparsify.engine.target import host
from sparsify.nn import SparseConv2d, SparseLinear, growth, to_dense, to_sparse
from sparsify.nn.norm import PlanesBatchNorm2d
from sparsify.topology.connections import Connections
from sparsify.topology.masks import Masks
from sparsify.topology.positions import Positions
from sparsify.topology.select import drop_and_grow, random_mask
from sparsify.training.snapshot import load_method

METHODS = {name: load_method(name) for name in registry.names("methods")}
STREAMED = [name for name, method in METHODS.items() if method.updates_masks and method.sees_single_connections]


@pytest.mark.parametrize("name", STREAMED)
@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 30), inner=st.integers(1, 40), density=st.floats(0, 1), fraction=st.floats(0, 1),
    block=st.sampled_from([1, 50, 1000]), parts=st.integers(1, 3), seed=st.integers(0, 50),
)  # fmt: skip
def test_chosen_as_from_dense_tensors_ties_included(name, out, inner, density, fraction, block, parts, seed):
    random = torch.Generator().manual_seed(seed)
    out *= parts
    mask = random_mask((out, inner), int(density * out * inner), random)
    dense = nn.utils.skip_init(nn.Linear, inner, out)
    with torch.no_grad():  # few different values, so that there are ties
        dense.weight.copy_(torch.randint(-2, 3, (out, inner), generator=random) * mask)
    layer = SparseLinear.from_dense(dense, mask)
    layer.tape = [torch.randint(-2, 3, (k, 4), generator=random).float() for k in (inner, out)]
    layer.tape = [tuple(layer.tape)]
    gradient = layer.tape[0][1] @ layer.tape[0][0].t()
    method, numbers, found = METHODS[name], torch.Generator().manual_seed(1), []
    for held in zip(*(tensor.detach().chunk(parts) for tensor in (mask, dense.weight, gradient)), strict=True):
        seen = Connections(*held, numbers)
        count = int(fraction * seen.count)
        found.append(drop_and_grow(seen.mask, method.drop_score(seen), method.grow_score(seen), count))
    wanted = torch.cat(found)
    before, growth.BLOCK = growth.BLOCK, block
    try:
        same = torch.Generator().manual_seed(1)
        change = growth.exchange(layer, fraction, method.drop_score, method.grow_score, same, parts)
    finally:
        growth.BLOCK = before
    assert torch.equal(change.positions.mask(), wanted)
    assert torch.equal(same.get_state(), numbers.get_state()), "layers behind would see other numbers"
    assert change.lasting == int((wanted & mask).sum())
    change.move(layer.weight.data)
    layer.set_pattern(change.pattern)
    assert torch.equal(layer.to_dense(), dense.weight * (mask & wanted))


def test_some_method_is_streamed_and_some_is_not():
    assert "rigl" in STREAMED and "set" in STREAMED and not METHODS["snfs"].sees_single_connections


@given(shape=st.sampled_from([(3, 5), (1, 1), (40, 7), (6, 2, 3, 3)]), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_positions_stand_for_their_mask(shape, share, seed):
    size = int(np.prod(shape))
    mask = random_mask(shape, int(share * size), torch.Generator().manual_seed(seed))
    layer = Positions(shape, mask.flatten().nonzero().squeeze(1))
    assert torch.equal(layer.mask(), mask) and layer.count == int(mask.sum()) and layer.size == size
    full, listed = Masks({"a": mask, "b": mask}), Masks({"b": mask}, positions={"a": layer})
    assert full.digest() == listed.digest() and full.nonzeros() == listed.nonzeros()
    assert full.sparsity() == listed.sparsity()
    for name, active in full.active_neurons().items():
        assert torch.equal(active, listed.active_neurons()[name])


def test_long_positions_are_packed_in_parts():
    shape = (3, 700_001)
    flat = torch.from_numpy(np.sort(np.random.default_rng(0).choice(2_100_003, 1000, replace=False)))
    layer = Positions(shape, flat)
    assert len(list(layer.packed())) == 9
    assert Masks({}, positions={"a": layer}).digest() == Masks({"a": layer.mask()}).digest()


def test_models_are_converted_there_and_back():
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), shared, nn.Sequential(shared, nn.Linear(20, 5, bias=False)))
    model.append(nn.Linear(5, 3)).eval()
    masks = {name: random_mask(tuple(p.shape), p.numel() // 5, torch.Generator().manual_seed(1))
             for name, p in model.named_parameters() if p.ndim == 2}  # fmt: skip
    masks["4.weight"] = torch.ones(3, 5, dtype=torch.bool)
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    x = torch.randn(4, 30)
    wanted, state = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert to_sparse(model, masks, x) == ["0.weight", "3.1.weight"], "shared and dense weights stay"
    assert isinstance(model[0], SparseLinear) and not model[0].training
    assert torch.allclose(model(x), wanted, atol=1e-5)
    to_dense(model)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [1, 50, 1000])
@pytest.mark.parametrize("at_once", [True, False])
def test_convolutions_are_rewired_as_from_dense_tensors(groups, block, at_once, monkeypatch):
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=groups, bias=False)
    mask = random_mask(tuple(dense.weight.shape), dense.weight.numel() // 4, torch.Generator().manual_seed(0))
    with torch.no_grad():  # whole numbers, so that sums are exact in any order, and ties
        dense.weight.copy_(torch.randint(-2, 3, dense.weight.shape) * mask)
    layer = SparseConv2d.from_dense(dense, mask)
    layer.tape, gathered = [], None
    monkeypatch.setattr(growth, "BLOCK", block)
    for batch in range(3):  # accumulated in one step, or gathered over several
        if batch and not at_once:
            gathered, layer.tape = growth.gather(layer, gathered), []
        x = torch.randint(-2, 3, (5, 4, 7, 6)).float()
        for module in (dense, layer):
            output = module(x)
            output.backward(torch.arange(output.numel()).view_as(output) % 5 - 2.0)
    method, fraction = METHODS["rigl"], 0.3
    seen = Connections(mask, dense.weight.detach(), dense.weight.grad, torch.Generator())
    wanted = drop_and_grow(mask, method.drop_score(seen), method.grow_score(seen), int(fraction * seen.count))
    change = growth.exchange(layer, fraction, method.drop_score, method.grow_score, torch.Generator(), 1, gathered)
    assert torch.equal(change.positions.mask(), wanted)
    change.move(layer.weight.data)
    layer.set_pattern(change.pattern)
    assert torch.equal(layer.to_dense(), dense.weight * (mask & wanted))


def test_convolutional_models_are_converted_there_and_back():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True), nn.Conv2d(24, 16, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    share = {"0.weight": 1.0, "3.weight": 0.1, "4.weight": 0.1, "7.weight": 0.9, "10.weight": 0.9}
    masks = {name: random_mask(tuple(p.shape), int(share[name] * p.numel()), torch.Generator().manual_seed(1))
             for name, p in model.named_parameters() if name in share}  # fmt: skip
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    x = torch.randn(2 * host().width, 3, 9, 8)
    twin = copy.deepcopy(model)
    done = to_sparse(model, masks, x)
    assert done == ["0.weight", "4.weight"], (
        "padding by name and weights with few zeros stay; one of few weights does not"
    )
    assert type(model[1]) is type(model[5]) is PlanesBatchNorm2d
    for _ in range(2):
        wanted, found = (m(x) for m in (twin, model))
        assert torch.allclose(found, wanted, atol=1e-5)
        for m, y in ((twin, wanted), (model, found)):
            m.zero_grad()
            y.logsumexp(1).sum().backward()
    place = model[4].positions()
    assert torch.allclose(model[4].weight.grad, twin[4].weight.grad.flatten()[place], atol=1e-4)
    assert torch.allclose(model[1].weight.grad, twin[1].weight.grad, atol=1e-4)
    to_dense(model)
    assert str(model) == str(twin)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, twin.state_dict()[name], atol=1e-5), name
    dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
    assert to_sparse(model, dense, x) == [] and type(model[1]) is nn.BatchNorm2d, "without zeros all stays as it is"
