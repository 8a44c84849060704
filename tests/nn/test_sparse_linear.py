"""SparseLinear against plain float64 loops, torch's dense layer and numerical derivatives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsify.engine.target import host, named
from sparsify.errors import SparsityError
from sparsify.nn import SparseLinear
from sparsify.nn.kernels.products import LONGEST
from sparsify.nn.pattern import build_pattern
from sparsify.nn.products import Products, lanes, plain, planes
from tests.allocations import Watcher
from tests.threads import assert_same_bits, output_and_gradients

LEVELS = ["generic", "avx2", "avx512"]
LEVELS = LEVELS[: LEVELS.index(host().level) + 1]


def draw(shape: tuple[int, int], count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(shape[0] * shape[1], count, replace=False))


def loops(positions: np.ndarray, values: np.ndarray, x: np.ndarray, dy: np.ndarray, bias: np.ndarray):
    """y, dw and dx of one batch, non-zero by non-zero in float64."""
    y = np.tile(bias.astype(np.float64), (len(x), 1))
    dw, dx = np.zeros(len(values)), np.zeros(x.shape)
    for number, (position, value) in enumerate(zip(positions, values, strict=True)):
        row, column = divmod(int(position), x.shape[1])
        y[:, row] += np.float64(value) * x[:, column]
        dx[:, column] += np.float64(value) * dy[:, row]
        dw[number] = np.dot(dy[:, row].astype(np.float64), x[:, column].astype(np.float64))
    return y, dw, dx


def assert_close(found: Tensor, wanted: np.ndarray, terms: int) -> None:
    """Within what a float32 sum of so many terms may be off."""
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=0, atol=3e-7 * (terms + 4) * scale)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 70), inner=st.sampled_from([1, 7, 64, 65, 130, 1200]),
    batch=st.sampled_from([1, 3, 16, 33, 130]), share=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_all_three_products_are_those_of_plain_loops(level, out, inner, batch, share, seed):
    random = np.random.default_rng(seed)
    positions = draw((out, inner), int(share * min(out * inner, 1500)), seed)
    pattern, order = build_pattern(positions, (out, inner))
    assert np.array_equal(pattern.positions(), positions[order])
    products = Products(pattern, named(level))
    where = lanes(batch, products.target)
    x, dy = (torch.from_numpy(random.standard_normal((batch, k)).astype(np.float32)) for k in (inner, out))
    values, bias = (torch.from_numpy(random.standard_normal(k).astype(np.float32)) for k in (len(positions), out))
    wanted = loops(pattern.positions(), values.numpy(), x.numpy(), dy.numpy(), bias.numpy())
    xs, errors = planes(x, where), planes(dy, where)
    y = products.forward(xs, values, bias, where)[:, :batch].t()
    dw, dx = products.backward(xs, errors, values, where, wants_dx=True)
    alone, _ = products.backward(xs, errors, values, where, wants_dx=False)
    assert_close(y, wanted[0], inner)
    assert_close(dw, wanted[1], batch)
    assert_close(dx[:, :batch].t(), wanted[2], out)
    assert_close(alone, wanted[1], batch)


@pytest.mark.parametrize("count", [LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST + 1])
def test_long_rows_are_cut_into_segments(count):
    pattern, _ = build_pattern(np.arange(count), (2, 4 * LONGEST * 16))
    assert np.diff(pattern.firsts).max() <= LONGEST and pattern.firsts[-1] == count
    x = torch.randn(5, 4 * LONGEST * 16)
    layer = SparseLinear(4 * LONGEST * 16, 2, np.arange(count), bias=False)
    wanted = x[:, :count].double() @ layer.to_dense()[0, :count].double()
    assert_close(layer(x)[:, 0], wanted.numpy(), count)


def test_gradients_of_the_plain_products_are_numerical_derivatives():
    pattern, _ = build_pattern(draw((5, 7), 12, 0), (5, 7))
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    values = torch.randn(12, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: plain(*given, pattern), (x, values, bias))


@pytest.mark.parametrize("batch", [1, 32, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_is_the_masked_dense_layer(batch, bias):
    torch.manual_seed(0)
    dense = nn.Linear(90, 40, bias=bias)
    mask = torch.rand(40, 90) < 0.3
    layer = SparseLinear.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight.mul_(mask)
    assert torch.equal(layer.to_dense(), dense.weight)
    x = torch.randn(2, batch, 90)
    results = []
    for module in (dense, layer):
        given = x.clone().requires_grad_()
        output = module(given)
        output.square().sum().backward()
        results.append((output, given.grad, None if not bias else module.bias.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert ours is theirs is None or torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    place = layer.positions()
    assert torch.allclose(layer.weight.grad, dense.weight.grad.flatten()[place], rtol=1e-4, atol=1e-3)


def test_other_dtypes_and_autocast_take_plain_operations():
    layer = SparseLinear(30, 20, draw((20, 30), 60, 0))
    x = torch.randn(4, 30)
    wanted = layer(x)
    assert torch.allclose(layer.double()(x.double()).float(), wanted, atol=1e-5)


def test_outputs_lie_in_planes_and_are_not_copied_between_layers():
    first, second = (SparseLinear(64, 64, draw((64, 64), 400, i)) for i in (0, 1))
    hidden = torch.relu(first(torch.randn(32, 64)))
    where = lanes(32, host())
    assert where.pitch == 32 and planes(hidden, where).data_ptr() == hidden.data_ptr()
    assert second(hidden).shape == (32, 64)
    sequences = torch.randn(64, 8, 4).permute(2, 1, 0)  # [4, 8, 64], in planes: of a unit all samples lie together
    once = first(sequences)
    assert once.stride() == sequences.stride()
    assert torch.equal(once, first(sequences.contiguous()))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_no_step_makes_a_tensor_of_the_dense_size(optimizer):
    size, count, batch = 512, 2600, 8
    with Watcher() as watcher:
        model = nn.Sequential(*(SparseLinear(size, size, draw((size, size), count, i)) for i in range(2)))
        steps = optimizer(model.parameters(), lr=0.01)
        for _ in range(2):
            model(torch.randn(batch, size)).square().mean().backward()
            steps.step()
        saved = model.state_dict()
        model.load_state_dict(saved)
    assert count <= watcher.largest < size * size / 8
    for slots in steps.state.values():
        assert all(slot.numel() in (1, count, size) for slot in slots.values() if isinstance(slot, Tensor))


def test_state_dict_holds_positions_and_loads_in_any_order():
    layer = SparseLinear(30, 20, draw((20, 30), 60, 0))
    state = layer.state_dict()
    shuffle = torch.randperm(60)
    state |= {"weight": state["weight"][shuffle], "positions": state["positions"][shuffle]}
    other = SparseLinear(30, 20, draw((20, 30), 60, 1))
    other.load_state_dict(state)
    assert torch.equal(other.to_dense(), layer.to_dense()) and torch.equal(other.bias, layer.bias)
    with pytest.raises(RuntimeError, match="size mismatch"):
        SparseLinear(30, 20, draw((20, 30), 59, 1)).load_state_dict(state)


def test_copies_are_independent_of_what_was_compiled():
    layer = SparseLinear(30, 20, draw((20, 30), 60, 0))
    x = torch.randn(4, 30)
    wanted = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), wanted)


def test_same_bits_however_many_threads():
    layer = SparseLinear(600, 500, draw((500, 600), 30_000, 0))
    x = torch.randn(64, 600)
    assert_same_bits(lambda: output_and_gradients(layer, x))


@pytest.mark.parametrize("positions", [[0, 0], [3, 1], [-1, 2], [0, 600]])
def test_positions_that_break_the_rule_are_an_error(positions):
    with pytest.raises(SparsityError, match="ascending and each once"):
        SparseLinear(30, 20, np.array(positions))


def test_no_positions_at_all():
    layer = SparseLinear(30, 20, np.zeros(0, np.int64))
    x = torch.randn(4, 30, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert torch.equal(output, layer.bias.expand(4, 20)) and not x.grad.any() and layer.weight.grad.shape == (0,)
