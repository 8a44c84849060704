"""The GPU's sparse products against float64, on a GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("triton", reason="Triton is not installed here")

from sparsify.gpu.layers import sparse_layer
from sparsify.gpu.matrix import sparse_matrix
from sparsify.gpu.products import MOST_LANES, STEP, VECTOR_STEP, sparse_times_dense, sparse_times_vector
from sparsify.runtimes._layers import replace_layers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
edges = st.sampled_from([1, 2, STEP - 1, STEP, STEP + 1, 31, 32, 33, 100])
widths = st.sampled_from([1, 3, 49, MOST_LANES, MOST_LANES + 1])
depths = st.sampled_from([1, 31, 32, 33, VECTOR_STEP, VECTOR_STEP + 1, 600])
dtypes = st.sampled_from(list(TOLERANCE))


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype, density: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=random)
    mask = torch.rand(shape, generator=random) < density
    return (values * mask).to(dtype).to(DEVICE)


def check(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype and found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert float(error) < TOLERANCE[dtype]


@settings(max_examples=25, deadline=None)
@given(rows=edges, depth=edges, width=widths, batch=st.sampled_from([1, 3]), dtype=dtypes,
       density=st.sampled_from([0.0, 0.1, 0.5, 1.0]), biased=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_matrix(rows, depth, width, batch, dtype, density, biased, seed):
    weight, x = drawn((rows, depth), seed, dtype, density), drawn((batch, depth, width), seed + 1, dtype)
    bias = drawn((rows,), seed + 2, dtype) if biased else None
    expected = weight.double() @ x.double() + (bias.double()[:, None] if biased else 0)
    check(sparse_times_dense(sparse_matrix(weight), x, bias), expected, dtype)


@settings(max_examples=25, deadline=None)
@given(rows=edges, depth=depths, dtype=dtypes, density=st.sampled_from([0.0, 0.1, 0.5, 1.0]), biased=st.booleans(),
       positions=st.sampled_from(["bits", "offsets", None]), seed=st.integers(0, 99))  # fmt: skip
def test_vector(rows, depth, dtype, density, biased, positions, seed):
    weight, x = drawn((rows, depth), seed, dtype, density), drawn((depth,), seed + 1, dtype)
    bias = drawn((rows,), seed + 2, dtype) if biased else None
    expected = weight.double() @ x.double() + (bias.double() if biased else 0)
    check(sparse_times_vector(sparse_matrix(weight), x, bias, positions), expected, dtype)


def test_columns_beyond_15_and_16_bits():
    for depth in (40_000, 70_000):
        weight = torch.zeros(2, depth, device=DEVICE)
        weight[0, depth - 1], weight[1, 35_000] = 2.0, 3.0
        x = torch.arange(depth, dtype=torch.float32, device=DEVICE)
        expected = [2.0 * (depth - 1), 3.0 * 35_000]
        assert sparse_times_vector(sparse_matrix(weight), x, positions="offsets").tolist() == expected
        assert sparse_times_dense(sparse_matrix(weight), x[None, :, None]).flatten().tolist() == expected


def test_layers_of_a_module_are_replaced_where_they_are_sparse():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 40, 1), nn.BatchNorm2d(40),
        nn.Conv2d(40, 8, 1, stride=2), nn.Flatten(), nn.Linear(8 * 9, 20), nn.ReLU(), nn.Linear(20, 10),
    ).eval().to(DEVICE)  # fmt: skip
    with torch.no_grad():
        for index in (0, 2, 4, 6):
            module[index].weight.mul_(torch.rand_like(module[index].weight) < 0.1)
        inputs = [torch.randn(batch, 3, 6, 6, device=DEVICE) for batch in (1, 3)]
        expected = [copy.deepcopy(module).double()(x.double()) for x in inputs]
        assert replace_layers(module, sparse_layer) == ["2", "6"]
        for x, y in zip(inputs, expected, strict=True):
            check(module(x), y, torch.float32)


def test_shapes_that_do_not_fit():
    weight = sparse_matrix(torch.eye(3, device=DEVICE))
    with pytest.raises(ValueError, match="3 columns cannot be multiplied by 4 rows"):
        sparse_times_dense(weight, torch.zeros(1, 4, 2, device=DEVICE))
    with pytest.raises(ValueError, match=r"vector of shape \(4,\)"):
        sparse_times_vector(weight, torch.zeros(4, device=DEVICE))
