"""The cost model against the figures that the authors of RigL publish, and against sums done by hand."""

from __future__ import annotations

import pytest
import torch

from sparsify import architectures
from sparsify.data import DataInfo
from sparsify.errors import RecipeError
from sparsify.recipe import load_recipe
from sparsify.topology.costs import (
    Layer,
    format_bytes,
    inference_flops,
    mean_step_flops,
    sparse_bytes,
    step_flops,
)
from sparsify.topology.densities import allocate_counts
from sparsify.topology.layers import find_layers
from sparsify.training.plan import plan
from sparsify.training.snapshot import build_network

IMAGENET = (3, 224, 224)
DIGITS = DataInfo((1, 8, 8), 10, 1000, (0.0,), (1.0,))


def layers_of(name: str, options: dict, shape: tuple[int, ...], classes: int) -> list[Layer]:
    with torch.device("meta"):
        model = architectures.build(name, options, shape, classes)
        return find_layers(model, torch.zeros(1, *shape))


@pytest.fixture(scope="module")
def resnet50() -> list[Layer]:
    return layers_of("resnet", {"depth": 50}, IMAGENET, 1000)


def counts(layers: list[Layer], distribution: str, sparsity: float) -> dict[str, int]:
    return allocate_counts(distribution, layers, sparsity)


def test_dense_resnet50(resnet50):
    assert inference_flops(resnet50, {}) / 1e6 == pytest.approx(8189.5, abs=0.05)
    assert sparse_bytes(resnet50, {}) / 1e6 == pytest.approx(102.122, abs=0.0005)
    assert len(resnet50) == 54


@pytest.mark.parametrize(
    ("distribution", "sparsity", "flops", "megabytes", "dense_layers"),
    [
        ("erdos_renyi_kernel", 0.8, 0.415, 23.68, 8),
        ("erdos_renyi_kernel", 0.9, 0.243, 13.50, 1),
        ("uniform", 0.8, 0.224, None, 1),
        ("uniform", 0.9, 0.127, None, 1),
    ],
)
def test_sparse_resnet50(resnet50, distribution, sparsity, flops, megabytes, dense_layers):
    nonzeros = counts(resnet50, distribution, sparsity)
    share = inference_flops(resnet50, nonzeros) / inference_flops(resnet50, {})
    assert round(share, 3) == flops
    if megabytes is not None:
        assert round(sparse_bytes(resnet50, nonzeros) / 1e6, 2) == megabytes
    assert sum(nonzeros[layer.name] == layer.size for layer in resnet50) == dense_layers


def test_training_costs_of_the_paper():
    sparse, dense = 10, 100
    assert step_flops(dense, dense) == 300
    assert step_flops(sparse, sparse) == 30
    assert mean_step_flops(sparse, dense, 99, at_updates=0, at_every_step=False) == 30
    assert mean_step_flops(sparse, dense, 99, at_updates=0, at_every_step=True) == 2 * 10 + 100
    for batches in (1, 5):
        rigl = mean_step_flops(sparse, dense, 99, at_updates=batches, at_every_step=False)
        assert rigl == pytest.approx((3 * 10 * (100 - batches) + (2 * 10 + 100) * batches) / 100)


def recipe(*changes: str):
    lengths = ["training.steps=100", "topology.delta_t=10", "topology.sparsity=0.9"]
    return load_recipe(None, [*lengths, *changes])


def test_plan_of_methods_that_keep_their_sparsity():
    static = plan(recipe("topology.method=static"), DIGITS)
    assert static.step_flops == 3 * static.inference_flops
    assert static.training_flops == static.step_flops * 100 * static.batch_size
    dense = plan(recipe("topology.method=dense"), DIGITS)
    assert dense.training_flops == dense.dense_training_flops == static.dense_training_flops
    rigl = plan(recipe("topology.method=rigl"), DIGITS)
    expected = (3 * static.inference_flops * 10 + 2 * static.inference_flops + dense.inference_flops) / 11
    assert rigl.step_flops == pytest.approx(expected)
    snfs = plan(recipe("topology.method=snfs"), DIGITS)
    assert snfs.step_flops == 2 * static.inference_flops + dense.inference_flops


def test_plan_of_pruning_averages_its_sparsity_over_time():
    found = plan(recipe("topology.method=gradual_pruning", "topology.t_end=0.5"), DIGITS)
    _, layers, _ = build_network(recipe("topology.method=gradual_pruning"), DIGITS)
    sizes = {layer.name: layer.size for layer in layers}
    final = counts(layers, "erdos_renyi_kernel", 0.9)
    total = 10 * inference_flops(layers, sizes)  # dense until the first of five updates
    for update, lasts in ((1, 10), (2, 10), (3, 10), (4, 10), (5, 50)):
        left = (1 - update / 5) ** 3
        now = {name: final[name] + int((sizes[name] - final[name]) * left) for name in sizes}
        total += lasts * inference_flops(layers, now)
    assert found.step_flops == pytest.approx(3 * total / 100)


def test_multiplier_stretches_training_and_nothing_else():
    one, five = plan(recipe(), DIGITS), plan(recipe("training.multiplier=5"), DIGITS)
    assert five.steps == 5 * one.steps
    assert five.step_flops == one.step_flops  # an update every delta_t steps as before
    assert five.training_flops == 5 * one.training_flops


@pytest.mark.parametrize("equal", ["parameters", "flops"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_small_dense_costs_what_the_sparse_network_does(equal, sparsity):
    changes = ["topology.method=small_dense", f"topology.options.equal={equal}", f"topology.sparsity={sparsity}"]
    _, narrow, masks = build_network(recipe(*changes), DIGITS)
    _, wide, sparse_masks = build_network(recipe("topology.method=static", changes[2]), DIGITS)
    if equal == "flops":
        target = inference_flops(wide, sparse_masks.nonzeros())
        cost = inference_flops(narrow, {})
    else:
        target = sum(sparse_masks.nonzeros().values()) + sum(layer.shape[0] for layer in wide)
        cost = sum(layer.size + layer.shape[0] for layer in narrow)
    assert 0.9 * target < cost <= target, "the widest that is not dearer"
    assert all(mask.all() for mask in masks.values())


def test_no_width_is_narrow_enough():
    with pytest.raises(RecipeError, match="No width of lenet is as cheap in parameters"):
        plan(recipe("topology.method=small_dense", "topology.sparsity=0.97", "model.hidden=[1]"), DIGITS)


def test_method_that_never_reaches_its_sparsity():
    with pytest.raises(RecipeError, match="reaches its sparsity by updates of the masks, and there is none"):
        plan(recipe("topology.method=gradual_pruning", "topology.delta_t=90"), DIGITS)


def test_bytes_of_each_way_of_storing():
    layers = [Layer("a", (10, 100), 1), Layer("b", (2, 10), 1)]
    found = format_bytes(layers, {"a": 50})
    assert found["dense"] == 4 * (1000 + 10) + 4 * (20 + 2)
    assert found["bitmask"] == 4 * 50 + 125 + 4 * 10 + 4 * (20 + 2)
    assert found["csr"] == 50 * 6 + 4 * 11 + 4 * 10 + 4 * (20 + 2)  # b is smaller dense
    wide = [Layer("c", (1, 70_000), 1)]
    assert format_bytes(wide, {"c": 5})["csr"] == 5 * 8 + 4 * 2 + 4
