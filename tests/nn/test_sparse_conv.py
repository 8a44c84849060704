"""SparseConv2d against plain float64 loops, torch's dense layer and numerical derivatives."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from sparsify.engine.target import host, named
from sparsify.errors import SparsityError
from sparsify.nn import SparseConv2d, conv_products
from sparsify.nn.conv import dense_product
from sparsify.nn.conv_pattern import ConvPattern, Geometry
from sparsify.nn.conv_products import ConvProducts, planes, sizes_of
from tests.threads import assert_same_bits, output_and_gradients

LEVELS = [level for level in ("avx2", "avx512") if level in ("avx2", host().level)]
if host().level == "generic":
    pytest.skip("there is no native code for this CPU", allow_module_level=True)


def draw(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(math.prod(shape), count, replace=False))


def loops(pattern: ConvPattern, geometry: Geometry, values, x, dy, bias):
    """y, dx and dw, non-zero by non-zero in float64 on padded images."""
    (pad_h, pad_w), (step_h, step_w), (_, _, height, width) = geometry.padding, geometry.stride, x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    wide, y, dw = np.zeros(padded.shape), np.zeros(dy.shape), np.zeros(len(values))
    out, inner, *_ = pattern.shape
    for number, flat in enumerate(pattern.flat.tolist()):
        o, c, i, j = (int(k) for k in np.unravel_index(flat, pattern.shape))
        c += o // (out // pattern.groups) * inner
        rows = slice(i * geometry.dilation[0], i * geometry.dilation[0] + step_h * (dy.shape[2] - 1) + 1, step_h)
        columns = slice(j * geometry.dilation[1], j * geometry.dilation[1] + step_w * (dy.shape[3] - 1) + 1, step_w)
        y[:, o] += np.float64(values[number]) * padded[:, c, rows, columns]
        wide[:, c, rows, columns] += np.float64(values[number]) * dy[:, o]
        dw[number] = (padded[:, c, rows, columns] * dy[:, o].astype(np.float64)).sum()
    return y + bias[:, None, None], wide[:, :, pad_h : pad_h + height, pad_w : pad_w + width], dw


def assert_close(found, wanted: np.ndarray, terms: int) -> None:
    """Within what a float32 sum of so many terms may be off."""
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=0, atol=3e-7 * (terms + 4) * scale)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    out=st.sampled_from([1, 3, 13, 14, 32, 34, 66]), inner=st.sampled_from([1, 2, 5, 33]),
    groups=st.sampled_from([1, 1, 2]), kernel=st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]),
    stride=st.sampled_from([(1, 1), (2, 2), (3, 1)]), padding=st.sampled_from([(0, 0), (1, 1), (2, 0)]),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1)]), size=st.sampled_from([(9, 5), (6, 7), (17, 4)]),
    batch=st.sampled_from([1, 8, 16, 19, 32]), share=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_all_three_products_are_those_of_plain_loops(
    level, out, inner, groups, kernel, stride, padding, dilation, size, batch, share, seed
):
    random = np.random.default_rng(seed)
    out *= groups
    shape, geometry = (out, inner, *kernel), Geometry(kernel, stride, padding, dilation)
    assume(min(geometry.output(*size)) > 0)
    pattern = ConvPattern(shape, draw(shape, int(share * min(math.prod(shape), 600)), seed), groups)
    products = ConvProducts(pattern, geometry, named(level))
    x = random.standard_normal((batch, inner * groups, *size)).astype(np.float32)
    dy = random.standard_normal((batch, out, *geometry.output(*size))).astype(np.float32)
    values, bias = (random.standard_normal(n).astype(np.float32) for n in (pattern.count, out))
    y, dx, dw = loops(pattern, geometry, values, x, dy, bias)
    sizes = sizes_of(torch.from_numpy(x), products.target)
    xs, errors, w = (
        planes(torch.from_numpy(x), sizes.pitch),
        planes(torch.from_numpy(dy), sizes.pitch),
        torch.tensor(values),
    )
    terms = inner * math.prod(kernel)
    stream = products.stream(w, torch.from_numpy(bias), sizes)
    forward = products.forward(xs, stream, sizes)
    assert_close(forward[..., :batch].permute(3, 2, 0, 1), y, terms)
    assert_close(products.input_gradient(errors, w, sizes)[..., :batch].permute(3, 2, 0, 1), dx, terms * out)
    assert_close(products.weight_gradient(xs, errors, sizes), dw, dy[:, 0].size)


def test_many_non_zeros_are_cut_into_parts(monkeypatch):
    """Of code: more than one function has, and than its stream steps over in a tap; and of sums; all fetched early."""
    monkeypatch.setattr(conv_products, "_SUMS", 1 << 18)
    monkeypatch.setattr(conv_products, "_FETCHED", 0)
    shape, geometry = (64, 80, 3, 3), Geometry((3, 3), (1, 1), (1, 1))
    pattern = ConvPattern(shape, draw(shape, 20_000, 0))
    random = np.random.default_rng(0)
    x, dy = (random.standard_normal((16, c, 3, 4)).astype(np.float32) for c in (80, 64))
    values, bias = (random.standard_normal(n).astype(np.float32) for n in (pattern.count, 64))
    for level in LEVELS:
        products = ConvProducts(pattern, geometry, named(level))
        sizes = sizes_of(torch.from_numpy(x), products.target)
        xs, errors = (planes(torch.from_numpy(a), sizes.pitch) for a in (x, dy))
        y, dx, dw = loops(pattern, geometry, values, x, dy, bias)
        stream = products.stream(torch.from_numpy(values), torch.from_numpy(bias), sizes)
        found = products.forward(xs, stream, sizes)
        assert_close(found.permute(3, 2, 0, 1), y, 720)
        assert_close(products.input_gradient(errors, torch.from_numpy(values), sizes).permute(3, 2, 0, 1), dx, 576)
        assert_close(products.weight_gradient(xs, errors, sizes), dw, 16 * 12)


def test_gradients_of_the_plain_products_are_numerical_derivatives():
    shape, geometry = (4, 3, 3, 2), Geometry((3, 2), (2, 1), (1, 0))
    pattern = ConvPattern(shape, draw(shape, 20, 0))
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(20, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: dense_product(*given, pattern, geometry), (x, values, bias))


@pytest.mark.parametrize("batch", [1, 16, 20])
@pytest.mark.parametrize("options", [{}, {"bias": False, "stride": 2, "groups": 2}, {"dilation": 2, "padding": (1, 2)}])
def test_layer_is_the_masked_dense_layer(batch, options):
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 8, 3, **options)
    mask = torch.rand_like(dense.weight) < 0.3
    layer = SparseConv2d.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight.mul_(mask)
    assert torch.equal(layer.to_dense(), dense.weight) and str(layer.dense_layer()) == str(dense)
    x = torch.randn(batch, 6, 9, 8)
    results = []
    for module in (dense, layer):
        given = x.clone().requires_grad_()
        output = module(given)
        (output * output.detach().cos()).sum().backward()
        results.append((output, given.grad, None if module.bias is None else module.bias.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert ours is theirs is None or torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    place = layer.positions()
    assert torch.allclose(layer.weight.grad, dense.weight.grad.flatten()[place], rtol=1e-4, atol=1e-3)


def test_other_dtypes_take_torch_products():
    layer = SparseConv2d(3, 5, 3, draw((5, 3, 3, 3), 30, 0), padding=1)
    x = torch.randn(4, 3, 6, 6)
    wanted = layer(x)
    assert torch.allclose(layer.double()(x.double()).float(), wanted, atol=1e-5)


def test_outputs_lie_in_planes_and_are_not_copied_between_layers():
    first, second = (SparseConv2d(8, 8, 3, draw((8, 8, 3, 3), 50, i), padding=1) for i in (0, 1))
    hidden = torch.relu(first(torch.randn(32, 8, 5, 6)))
    assert planes(hidden, 32).data_ptr() == hidden.data_ptr()
    assert second(hidden).shape == (32, 8, 5, 6)


def test_same_bits_however_many_threads():
    layer = SparseConv2d(40, 40, 3, draw((40, 40, 3, 3), 6000, 0), padding=1)
    x = torch.randn(32, 40, 8, 8)
    assert_same_bits(lambda: output_and_gradients(layer, x))


def test_state_dict_loads_in_any_order_and_copies_are_independent():
    layer = SparseConv2d(3, 5, 3, draw((5, 3, 3, 3), 30, 0))
    x = torch.randn(2, 3, 6, 6)
    wanted, state, shuffle = layer(x), layer.state_dict(), torch.randperm(30)
    state |= {"weight": state["weight"][shuffle], "positions": state["positions"][shuffle]}
    other = SparseConv2d(3, 5, 3, draw((5, 3, 3, 3), 30, 1))
    other.load_state_dict(state)
    assert torch.equal(other(x), wanted) and torch.equal(copy.deepcopy(other)(x), wanted)


@pytest.mark.parametrize("positions", [[0, 0], [3, 1], [-1, 2], [0, 135]])
def test_positions_that_break_the_rule_are_an_error(positions):
    with pytest.raises(SparsityError, match="ascending and each once"):
        SparseConv2d(3, 5, 3, np.array(positions))


def test_no_positions_at_all():
    layer = SparseConv2d(3, 5, 3, np.zeros(0, np.int64), padding=1)
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert torch.equal(output, layer.bias[:, None, None].expand(4, 5, 6, 6)) and not x.grad.any()
    assert layer.weight.grad.shape == (0,)


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (3, 6, 6), (2, 3, 6, 1)])
def test_shapes_that_do_not_fit_are_an_error(shape):
    with pytest.raises(SparsityError, match="3 channels"):
        SparseConv2d(3, 5, 3, np.arange(9))(torch.zeros(shape))
