"""A network that is drawn in parts is the one that is drawn as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.data import data_info
from sparsify.recipe import load_recipe
from sparsify.topology import select
from sparsify.training import deferred as module
from sparsify.training.deferred import Deferred, Later, NotDeferred
from sparsify.training.snapshot import build_network
from sparsify.training.sparse_network import build_sparse_network

INITS = {
    "uniform": lambda w: nn.init.uniform_(w, -2, 3),
    "normal": lambda w: nn.init.normal_(w, 1, 2),
    "kaiming": lambda w: nn.init.kaiming_normal_(w),
    "xavier": lambda w: nn.init.xavier_uniform_(w),
    "constant": lambda w: nn.init.constant_(w, 3.5),
    "twice": lambda w: nn.init.uniform_(nn.init.normal_(w)).mul_(2).sub_(1),
}


class Network(nn.Module):
    """One large weight, and something that is drawn after it."""

    def __init__(self, init, rows: int, columns: int) -> None:
        super().__init__()
        self.large = nn.Linear(columns, rows)
        with torch.no_grad():
            init(self.large.weight)
        self.after = nn.Linear(3, 3)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("shape", [(64, 64), (37, 41), (61, 43), (16, 65)])  # 1 and 15 and 0 more than whole groups
def test_entries_are_those_of_the_whole(init, shape, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "_PART", 64)
    torch.manual_seed(3)
    whole = Network(INITS[init], *shape)
    torch.manual_seed(3)
    with Deferred():
        part = Network(INITS[init], *shape)
    assert isinstance(part.large.weight, Later) and not isinstance(part.after.weight, Later)
    assert torch.equal(part.after.weight, whole.after.weight), "what is drawn later is another number"
    assert torch.equal(part.large.weight.whole(), whole.large.weight)
    some = torch.arange(0, shape[0] * shape[1], 7)
    assert torch.equal(part.large.weight.entries(some), whole.large.weight.flatten()[some])


def test_what_needs_the_whole_tensor_is_refused(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1000)
    for init in (nn.init.orthogonal_, nn.init.trunc_normal_):
        with pytest.raises(NotDeferred), Deferred():
            Network(init, 40, 40)


@pytest.mark.parametrize("distribution", ["erdos_renyi_kernel", "uniform"])
def test_a_sparse_network_is_the_masked_one(distribution, monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(select, "_PERMUTED", 1000)
    recipe = load_recipe(None, [f"topology.distribution={distribution}"])
    info = data_info("digits", {})
    model, layers, masks = build_network(recipe, info)
    ours, same, listed = build_sparse_network(recipe, info)
    assert same == layers and listed.digest() == masks.digest() and listed.positions
    dense = dict(model.named_parameters())
    for name, parameter in ours.named_parameters():
        if name in listed.positions:
            assert torch.equal(ours.get_submodule(name.removesuffix(".weight")).to_dense(), dense[name])
        else:
            assert torch.equal(parameter, dense[name])


def test_a_network_that_cannot_be_followed_is_drawn_as_a_whole(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1000)
    monkeypatch.setattr(module, "_RANDOM", set())
    recipe, info = load_recipe(None, []), data_info("digits", {})
    assert build_sparse_network(recipe, info)[2].digest() == build_network(recipe, info)[2].digest()
