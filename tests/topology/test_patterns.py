"""Constant fan-in and N:M, over many shapes."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.randomness import generator
from sparsify.topology.connections import Connections
from sparsify.topology.patterns import (
    draw_fan_in,
    draw_groups,
    exchange_fan_in,
    exchange_in_groups,
    from_input_groups,
    input_groups,
    largest_in_rows,
)

SHAPES = st.sampled_from([(6, 32), (5, 7), (4, 3, 3, 3), (8, 16, 1, 1), (3, 1), (1, 20), (2, 5, 3)])


def connections(mask: torch.Tensor, count: int) -> Connections:
    random = generator(1, "test")
    weight, gradient = torch.randn(mask.shape, generator=random), torch.randn(mask.shape, generator=random)
    return Connections(mask, weight * mask, gradient, random, final=count)


def test_rows_take_the_largest_and_what_comes_first():
    score = torch.tensor([[1.0, 3.0, 2.0, 3.0], [4.0, 0.0, 0.0, 0.0]])
    taken = largest_in_rows(score, torch.tensor([2, 0]))
    assert taken.tolist() == [[False, True, False, True], [False] * 4]
    first = torch.tensor([[True, False, False, False], [False, False, False, True]])
    taken = largest_in_rows(score, torch.tensor([2, 2]), first)
    assert taken.tolist() == [[True, True, False, False], [True, False, False, True]]


@given(SHAPES, st.integers(2, 9))
def test_groups_can_be_undone(shape, size):
    tensor = torch.arange(1.0, torch.Size(shape).numel() + 1).reshape(shape)
    assert torch.equal(from_input_groups(input_groups(tensor, size, -1.0), tensor.shape), tensor)


def test_groups_are_consecutive_input_channels_at_one_kernel_position():
    weight = torch.zeros(2, 4, 3, 3)
    weight[1, :, 2, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rows = input_groups(weight, 2, 0.0)
    assert [1.0, 2.0] in rows.tolist() and [3.0, 4.0] in rows.tolist()


@given(SHAPES, st.floats(0, 1), st.floats(0, 1))
def test_fan_in_is_constant_before_and_after_an_update(shape, density, fraction):
    count = int(density * torch.Size(shape).numel())
    mask = draw_fan_in(shape, count, generator(0, "test"))
    for _ in range(2):
        fan_in = mask.flatten(1).sum(1)
        assert len(set(fan_in[fan_in > 0].tolist())) <= 1
        active = int((fan_in > 0).sum())
        assert count - active < int(mask.sum()) <= count or not count
        mask = exchange_fan_in(connections(mask, count), fraction, salient=0.3)


@given(SHAPES, st.integers(2, 8), st.floats(0, 1), st.floats(0, 1))
def test_groups_hold_at_most_their_limit_and_layers_exactly_their_count(shape, size, density, fraction):
    total = torch.Size(shape).numel()
    count = int(density * total)
    limit = math.ceil(Fraction(size * count, total))
    mask = draw_groups(shape, count, size, generator(0, "test"))
    for _ in range(2):
        assert int(mask.sum()) == count
        assert int(input_groups(mask, size, False).sum(1).max()) <= limit
        mask = exchange_in_groups(connections(mask, count), fraction, size)


def test_growth_passes_over_full_groups():
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 0]]).bool()  # 2:4, both groups full
    weight = torch.tensor([[9.0, 8.0, 0.0, 0.0, 7.0, 0.0, 0.1, 0.0]])
    gradient = torch.tensor([[0.0, 0.0, 5.0, 5.0, 0.0, 1.0, 0.0, 2.0]])
    layer = Connections(mask, weight, gradient, generator(0, "test"), final=4)
    after = exchange_in_groups(layer, 0.25, 4)
    assert after.tolist() == [[True, True, False, False, True, False, False, True]]


def test_neuron_without_salience_is_ablated_and_its_connections_go_to_the_others():
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 4:] = False  # fan-in 4, 12 connections
    weight = torch.full((3, 8), 5.0)
    weight[1] = 0.01  # neuron 1 holds the smallest weights
    gradient = torch.zeros(3, 8)
    gradient[0, 4:] = gradient[2, 4:] = 1.0  # and others would rather grow
    layer = Connections(mask, weight * mask, gradient, generator(0, "test"), final=12)
    after = exchange_fan_in(layer, fraction=4 / 12, salient=0.5)
    assert after.sum(1).tolist() == [6, 0, 6]
    assert after[0, :4].all() and after[2, :4].all()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_fewer_connections_than_neurons(count):
    mask = draw_fan_in((8, 4), count, generator(0, "test"))
    assert sorted(mask.sum(1).tolist()) == [0] * (8 - count) + [1] * count
