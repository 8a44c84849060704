"""What is particular to a method, as its paper says it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sparsify import registry
from sparsify.errors import RecipeError
from sparsify.randomness import generator
from sparsify.topology.connections import Connections, Moment, Network
from sparsify.training.snapshot import load_method


def row(weights: list[float], gradient: list[float] | None = None, **changes) -> Connections:
    """A layer of one row; a weight of 0 does not exist."""
    weight = torch.tensor([weights])
    slope = torch.tensor([gradient or [0.0] * len(weights)])
    count = int((weight != 0).sum())
    given = {"momentum": slope, "initial": count, "final": count, **changes}
    return Connections(weight != 0, weight, slope, generator(0, "test"), **given)


def chosen(masks: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: mask[0].nonzero().flatten().tolist() for name, mask in masks.items()}


def update(name: str, layers: dict[str, Connections], moment: Moment, memory=None, **options):
    method = load_method(name, options)
    return method.update(Network(layers), moment, method.memory() if memory is None else memory)


def test_snip_keeps_the_largest_products_of_weight_and_gradient():
    layers = {
        "a": row([1, 2, 3, 4], [8, -3, 1, 1], final=2),  # |w g| = 8 6 3 4
        "b": row([1, 1, 1, 1], [1, 2, -9, 7], final=1),
    }
    masks, _ = update("snip", layers, Moment(0.3, 0.0))
    assert chosen(masks) == {"a": [0, 1], "b": [2]}
    masks, _ = update("snip", layers, Moment(0.3, 0.0), scope="network")
    assert chosen(masks) == {"a": [0], "b": [2, 3]}


def test_snfs_gives_dropped_connections_to_the_layer_with_more_momentum():
    layers = {
        "a": row([1, 2, 3, 4, 0, 0, 0, 0], [3, 3, 3, 3, 0.5, 9, 8, 7]),  # mean over its connections: 3
        "b": row([1, 2, 3, 4, 0, 0, 0, 0], [1, 1, 1, 1, 5, 6, 7, 8]),  # mean: 1
    }
    masks, _ = update("snfs", layers, Moment(0.5, 0.5))  # two dropped in each, 3 : 1
    assert chosen(masks) == {"a": [2, 3, 5, 6, 7], "b": [2, 3, 7]}


def test_dsr_drops_below_one_threshold_and_adapts_it():
    layers = {"a": row([0.1, 0.2, 3, 4, 0, 0]), "b": row([0.1, 2, 3, 4, 0, 0])}
    masks, memory = update("dsr", layers, Moment(0.375, 0.5), {"threshold": 1.0})
    assert {name: len(p) for name, p in chosen(masks).items()} == {"a": 3, "b": 5}  # survivors 2 : 3 share out 3
    assert {2, 3} <= set(chosen(masks)["a"]) and {1, 2, 3} <= set(chosen(masks)["b"])
    assert memory["threshold"] == 1.0, "3 of 8 were wanted and 3 were dropped"
    assert update("dsr", layers, Moment(0.9, 0.5), {"threshold": 1.0})[1]["threshold"] == 2.0
    assert update("dsr", layers, Moment(0.1, 0.5), {"threshold": 1.0})[1]["threshold"] == 0.5


def test_gradual_pruning_follows_the_cubic():
    method = load_method("gradual_pruning")
    counts = [method.planned_count(1000, 100, progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert counts == [1000, 100 + int(900 * 0.75**3), 100 + int(900 * 0.5**3), 100 + int(900 * 0.25**3), 100]
    late = load_method("gradual_pruning", {"begin": 0.5})
    assert late.planned_count(1000, 100, 0.5) == 1000 and late.planned_count(1000, 100, 1.0) == 100
    masks, _ = update("gradual_pruning", {"a": row([4, -1, 3, 2], initial=4, final=2)}, Moment(0.3, 1.0))
    assert chosen(masks) == {"a": [0, 2]}


def test_granet_prunes_over_all_layers_and_regenerates_in_each():
    layers = {
        "a": row([1, 2, 9, 8], [5, 1, 1, 1], initial=4, final=2),
        "b": row([7, 6, 0.5, 0.2], [1, 1, 1, 9], initial=4, final=2),
    }
    masks, _ = update("granet", layers, Moment(0.0, 1.0))
    assert chosen(masks) == {"a": [2, 3], "b": [0, 1]}
    masks, _ = update("granet", layers, Moment(0.5, 1.0))  # one of two replaced, by gradient
    assert chosen(masks) == {"a": [0, 2], "b": [0, 3]}


def test_srigl_and_nm_rigl_keep_their_pattern():
    generator_, shape = generator(0, "test"), (8, 32)
    for name, options in (("srigl", {}), ("nm_rigl", {"m": 8})):
        method = load_method(name, options)
        mask = method.draw(shape, 64, generator_)
        weight, gradient = (torch.randn(shape, generator=generator_) for _ in range(2))
        layer = Connections(mask, weight * mask, gradient, generator_, final=64)
        masks, _ = method.update(Network({"a": layer}), Moment(0.5, 0.5), {})
        assert not torch.equal(masks["a"], mask)
        if name == "srigl":
            fan_in = masks["a"].sum(1)
            assert len(set(fan_in[fan_in > 0].tolist())) == 1
        else:
            assert int(masks["a"].sum()) == 64 and int(masks["a"].reshape(-1, 8).sum(1).max()) <= 2


def test_the_readme_names_every_method_and_no_other():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text.split("## Methods")[1].split("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == registry.names("methods")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rigl", {"momentum": 0.5}, "no key in \\[topology.options\\] called 'momentum'"),
        ("nm_rigl", {"n": 2}, "called 'n'. .*Known: m"),
        ("nm_rigl", {"m": 1}, "'topology.options.m' = 1 is not possible: input should be greater than or equal to 2"),
        ("nm_rigl", {"m": "many"}, "'topology.options.m' = 'many' is not possible"),
        ("snip", {"scope": "galaxy"}, "'topology.options.scope' = 'galaxy' is not possible"),
        ("small_dense", {"equal": "memory"}, "'topology.options.equal' = 'memory' is not possible"),
    ],
)
def test_options_are_checked_against_the_methods_own(method, options, message):
    with pytest.raises(RecipeError, match=message):
        load_method(method, options)
