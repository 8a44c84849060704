"""Connections that move between layers, against sums done one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.randomness import generator
from sparsify.topology.connections import Connections, Network
from sparsify.topology.reallocate import drop_smallest, grow, keep_above, keep_largest_overall, share_out


def network(**weights: list[float]) -> Network:
    """Layers of one row; a weight of 0 does not exist."""
    layers = {}
    for name, values in weights.items():
        weight = torch.tensor([values])
        layers[name] = Connections(weight != 0, weight, weight, generator(0, "test"))
    return Network(layers)


def positions(masks: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: mask[0].nonzero().flatten().tolist() for name, mask in masks.items()}


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 50)), min_size=1, max_size=8
    ).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(0, sum(room for _, room in layers))))
)  # fmt: skip
def test_sharing_out_is_exact_and_fits(case):
    layers, total = case
    shares = {str(i): share for i, (share, _) in enumerate(layers)}
    room = {str(i): size for i, (_, size) in enumerate(layers)}
    parts = share_out(total, shares, room)
    assert sum(parts.values()) == total
    assert all(0 <= parts[name] <= room[name] for name in room)


def test_sharing_out_is_in_proportion():
    assert share_out(10, {"a": 1, "b": 4}, {"a": 100, "b": 100}) == {"a": 2, "b": 8}
    assert share_out(10, {"a": 1, "b": 4}, {"a": 100, "b": 5}) == {"a": 5, "b": 5}, "what is too much goes on"
    assert share_out(3, {"a": 1, "b": 1}, {"a": 9, "b": 9}) == {"a": 2, "b": 1}, "the first layer wins a tie"
    assert share_out(6, {"a": 0, "b": float("nan")}, {"a": 20, "b": 10}) == {"a": 4, "b": 2}, "no share at all"


def test_sharing_out_more_than_fits():
    with pytest.raises(ValueError, match="5 connections do not fit into 4 positions"):
        share_out(5, {"a": 1}, {"a": 4})


def test_largest_of_the_whole_network():
    found = keep_largest_overall(network(a=[1, -5, 2, 0], b=[3, 0, -4]), 3)
    assert positions(found) == {"a": [1], "b": [0, 2]}


def test_smallest_of_each_layer_are_dropped():
    found = drop_smallest(network(a=[1, -5, 2, 3], b=[3, 0, -4]), 0.5)
    assert positions(found) == {"a": [1, 3], "b": [2]}


def test_threshold_for_all_layers():
    found = keep_above(network(a=[1, -5, 2, 0], b=[0.5, 0, -4]), 2)
    assert positions(found) == {"a": [1, 2], "b": [2]}


def test_growth_is_where_the_score_is_largest_and_nothing_is_kept():
    layers = network(a=[9, 1, 5, 4])
    kept = {"a": torch.tensor([[True, False, False, False]])}
    assert positions(grow(layers, kept, {"a": 2}, lambda layer: layer.weight)) == {"a": [0, 2, 3]}
