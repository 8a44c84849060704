"""Distributions: what must hold for each that is found, and the published figures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify import registry
from sparsify.architectures import build
from sparsify.errors import SparsityError, UnknownNameError
from sparsify.topology.costs import Layer, inference_flops, plain_layers, sparse_bytes
from sparsify.topology.densities import allocate, count_nonzeros
from sparsify.topology.layers import find_layers

DISTRIBUTIONS = registry.names("topology/distributions")
extent = st.integers(1, 64)
shape = st.one_of(
    st.tuples(extent, extent),
    st.tuples(extent, extent, st.integers(1, 5), st.integers(1, 5)),
    st.tuples(extent, extent, st.integers(1, 5)),
)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(shapes=st.lists(shape, min_size=1, max_size=8), sparsity=st.floats(0, 0.999))
def test_every_layer_gets_a_sparsity_and_keeps_a_weight(name, shapes, sparsity):
    named = {f"layer{i}": s for i, s in enumerate(shapes)}
    shares = allocate(name, plain_layers(named), sparsity)
    assert shares.keys() == named.keys()
    assert all(0 <= share < 1 for share in shares.values())
    assert all(1 <= count_nonzeros(s, shares[n]) <= math.prod(s) for n, s in named.items())


@pytest.mark.parametrize("name", ["erdos_renyi", "erdos_renyi_kernel"])
@given(shapes=st.lists(shape, min_size=1, max_size=8), sparsity=st.floats(0, 0.999))
def test_budgets_are_met_also_where_layers_come_out_dense(name, shapes, sparsity):
    named = {f"layer{i}": s for i, s in enumerate(shapes)}
    shares = allocate(name, plain_layers(named), sparsity)
    total = sum(math.prod(s) for s in shapes)
    zeros = sum(shares[n] * math.prod(s) for n, s in named.items())
    assert zeros == pytest.approx(sparsity * total, abs=1e-6 * total)
    assert (
        abs(sum(count_nonzeros(s, shares[n]) for n, s in named.items()) - (1 - sparsity) * total) <= len(shapes) + 1e-6
    )


@given(shapes=st.lists(shape, min_size=2, max_size=8), sparsity=st.floats(0.5, 0.99))
def test_erk_densities_are_proportional_where_not_dense(shapes, sparsity):
    named = {f"layer{i}": s for i, s in enumerate(shapes)}
    shares = allocate("erdos_renyi_kernel", plain_layers(named), sparsity)
    factors = [(1 - shares[n]) * math.prod(s) / sum(s) for n, s in named.items() if shares[n] > 0]
    assert all(f == pytest.approx(factors[0], rel=1e-6) for f in factors)
    dense = [math.prod(s) / sum(s) for n, s in named.items() if shares[n] == 0]
    assert all(factor <= factors[0] * (1 + 1e-6) for factor in dense if factors)


def test_uniform_keeps_the_first_layer_dense():
    shares = allocate("uniform", plain_layers({"a": (4, 4), "b": (4, 4), "c": (2, 4)}), 0.75)
    assert shares == {"a": 0.0, "b": 0.75, "c": 0.75}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.2, math.nan])
def test_impossible_sparsity_names_the_largest_possible(sparsity):
    with pytest.raises(SparsityError, match=r"largest that leaves this network one weight a layer is 0\.937500"):
        allocate("uniform", plain_layers({"a": (4, 4)}), sparsity)


def test_unknown_distribution_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'uniform'"):
        allocate("unifrom", plain_layers({"a": (4, 4)}), 0.5)


def resnet50_layers() -> list[Layer]:
    """ResNet-50 v1.5 (stride in the 3x3) at 224 x 224: weights and output positions."""
    layers = [Layer("stem", (64, 3, 7, 7), 112 * 112)]
    channels = 64
    for width, blocks, size in [(64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)]:
        for block in range(blocks):
            before = size * 2 if block == 0 and width > 64 else size
            shapes = [((width, channels, 1, 1), before), ((width, width, 3, 3), size), ((4 * width, width, 1, 1), size)]
            if block == 0:
                shapes.append(((4 * width, channels, 1, 1), size))
            layers += [Layer(f"{width}.{block}.{i}", s, p * p) for i, (s, p) in enumerate(shapes)]
            channels = 4 * width
    return [*layers, Layer("head", (1000, 2048), 1)]


@pytest.mark.parametrize(
    ("distribution", "sparsity", "flops", "megabytes", "dense_layers"),
    [
        ("erdos_renyi_kernel", 0.8, 0.415, 23.68, 8),
        ("erdos_renyi_kernel", 0.9, 0.243, 13.50, 1),
        ("uniform", 0.8, 0.224, None, 1),
        ("uniform", 0.9, 0.127, None, 1),
    ],
)
def test_resnet50_costs_what_the_authors_published(distribution, sparsity, flops, megabytes, dense_layers):
    """github.com/google-research/rigl, README: table of ResNet-50 results."""
    layers = resnet50_layers()
    dense = inference_flops(layers, {})
    assert dense / 1e6 == pytest.approx(8189.5, abs=0.05)
    shares = allocate(distribution, layers, sparsity)
    counts = {layer.name: count_nonzeros(layer.shape, shares[layer.name]) for layer in layers}
    assert inference_flops(layers, counts) / dense == pytest.approx(flops, abs=5e-4)
    assert sum(share == 0 for share in shares.values()) == dense_layers
    assert sparse_bytes(layers, {}) / 1e6 == pytest.approx(102.122, abs=5e-4)
    if megabytes is not None:
        assert sparse_bytes(layers, counts) / 1e6 == pytest.approx(megabytes, abs=5e-3)


@pytest.mark.parametrize(("sparsity", "flops"), [(0.8, 0.353), (0.9, 0.175)])
def test_wide_resnet_costs_what_the_paper_says(sparsity, flops):
    layers = find_layers(build("wide_resnet", {"depth": 22, "width": 2}, (3, 32, 32), 10), torch.zeros(1, 3, 32, 32))
    assert sum(layer.size for layer in layers) == 1_076_912
    shares = allocate("erdos_renyi_kernel", layers, sparsity)
    counts = {layer.name: count_nonzeros(layer.shape, shares[layer.name]) for layer in layers}
    assert inference_flops(layers, counts) / inference_flops(layers, {}) == pytest.approx(flops, abs=5e-4)
