"""Exploration, churn, and what died."""

from __future__ import annotations

import logging

import torch

from sparsify.recipe import load_recipe
from sparsify.topology.masks import Masks
from sparsify.training.loop import train
from sparsify.training.metrics import read_metrics
from sparsify.training.monitoring import active_neurons, dead_neurons, deaths


def masks(**rows: list[list[int]]) -> Masks:
    return Masks({name: torch.tensor(values).bool() for name, values in rows.items()})


def test_dead_neurons_are_named_once():
    before = masks(fc1=[[1, 0], [0, 1], [0, 0]], fc2=[[1, 1, 1]])
    known = dead_neurons(before)
    after = masks(fc1=[[1, 1], [0, 0], [0, 0]], fc2=[[1, 1, 1]])
    warnings, known = deaths(after, known)
    assert warnings == ["In fc1 the neuron 1 died: no connection leads there now (2 of 3 so)."]
    assert deaths(before, known)[0] == []
    assert deaths(after, deaths(before, known)[1])[0] == [], "revived and dead again: told already"
    assert active_neurons(after) == {"fc1": 1, "fc2": 1}


def test_dead_layer_is_named():
    before, after = masks(fc1=[[1, 0], [0, 1]]), masks(fc1=[[0, 0], [0, 0]])
    warnings, _ = deaths(after, dead_neurons(before))
    assert len(warnings) == 1 and warnings[0].startswith("The layer fc1 died: it has no connection left")


def test_many_neurons_are_counted():
    before = masks(fc1=[[1]] * 20 + [[0]])
    warnings, _ = deaths(masks(fc1=[[0]] * 19 + [[1]] * 2), dead_neurons(before))
    assert "neurons 0, 1, 2, 3, 4, 5, 6, 7 and 11 more died" in warnings[0]


def test_metrics_of_a_run(tmp_path, caplog):
    changes = ["training.steps=120", "topology.delta_t=10", "topology.sparsity=0.97", "topology.method=set"]
    with caplog.at_level(logging.WARNING, "sparsify"):
        train(load_recipe(None, changes), tmp_path / "run", device="cpu")
    lines = read_metrics(tmp_path / "run")
    first, last = lines[0], lines[-1]
    assert 1 - last["sparsity"] < first["itop_rate"] < last["itop_rate"] < 1
    assert 0 < first["churn"] < 1 and last["churn"] == 0, "the drop fraction ends at 0"
    assert list(last["active_neurons"]) == ["1.weight", "3.weight", "5.weight"]
    assert 0 < last["active_neurons"]["1.weight"] < 300
    told = [warning for line in lines for warning in line.get("warnings", [])]
    assert told and told == caplog.messages


def test_training_flops_are_integrated_as_trained(tmp_path):
    """RigL: 3 f_S a step, and 2 f_S + f_D at each of its updates."""
    changes = ["training.steps=60", "topology.delta_t=10", "topology.t_end=0.5", "topology.sparsity=0.9"]
    run = train(load_recipe(None, changes), tmp_path / "run", device="cpu")
    hidden = [(300, 64), (100, 300), (10, 100)]
    from sparsify.formats import read_model

    layers = read_model(run.folder / "model.safetensors").layers
    counts = {name: int(mask.sum()) for name, mask in read_model(run.folder / "model.safetensors").masks().items()}
    sparse = sum(2 * counts[layer.name] + layer.shape[0] for layer in layers)
    dense = sum(2 * out * into + out for out, into in hidden)
    assert run.line["updates"] == 3
    assert run.line["training_flops"] == 64 * (57 * 3 * sparse + 3 * (2 * sparse + dense))
