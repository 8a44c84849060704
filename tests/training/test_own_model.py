"""A model and data that the user wrote: by reference and as objects, through training, resuming and export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsify as package
from sparsify.errors import DataError, FormatError, RecipeError
from sparsify.formats import read_model
from sparsify.formats._module import build_module
from sparsify.recipe import Recipe, load_recipe
from sparsify.references import import_reference
from sparsify.sources import export, open_source
from sparsify.training.loop import train

MODULE = """
import torch
from torch import nn

def net(classes: int, hidden: int = 24):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, classes))

def points():
    inputs = torch.randn(160, 12, generator=torch.Generator().manual_seed(0))
    labels = inputs[:, :4].argmax(1)
    return (inputs[:128], labels[:128]), (inputs[128:], labels[128:])

def nothing():
    return 7

broken = 3
"""
SHORT = ["training.steps=60", "training.batch_size=32", "topology.delta_t=10", "topology.sparsity=0.7"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the user's module in it."""
    import sys

    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def recipe(*changes: str) -> Recipe:
    return load_recipe(None, [*SHORT, *changes])


def test_by_reference_it_is_a_run_like_any_other(folder):
    result = train(recipe(), "run", model="mine:net", data="mine:points")
    stored = load_recipe(folder / "run" / "recipe.toml")
    assert (stored.name, stored.model.name, stored.data.name) == ("net-points", "mine:net", "mine:points")
    assert result.line["test_accuracy"] > 0.5 and result.line["updates"] == 4
    found = package.inspect("run")
    assert [row.name for row in found.layers] == ["0.weight", "2.weight"] and found.sparsity == pytest.approx(
        0.7, abs=0.01
    )
    written = export("run", out="run.onnx")
    assert written.relative_error < 1e-4
    plan = package.inspect("run/recipe.toml").plan
    assert plan is not None and plan.steps == 60


def test_options_of_the_function_are_keys_of_the_recipe(folder):
    changes = ['model={name="mine:net", hidden=8}', 'data={name="mine:points"}']
    assert open_source("lenet-300-100-digits", changes).layers[0].shape == (8, 12)
    with pytest.raises(RecipeError, match="'hiden'"):
        open_source("lenet-300-100-digits", ['model={name="mine:net", hiden=8}', 'data={name="mine:points"}'])


def test_a_stopped_run_goes_on_to_the_same_bits(folder):
    from sparsify.errors import InterruptedTraining
    from sparsify.training.loop import training

    whole = train(recipe(), "whole", model="mine:net", data="mine:points")
    with pytest.raises(InterruptedTraining):
        for progress in training(recipe(), "run", model="mine:net", data="mine:points"):
            if progress.step == 25:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)
    assert open_source("run").metadata.origin == "in training"
    resumed = train(out="run", resume=True)
    assert resumed.line == whole.line
    assert (folder / "run" / "model.safetensors").read_bytes() == (folder / "whole" / "model.safetensors").read_bytes()


def test_objects_are_trained_in_place_and_exported_from_the_result(folder):
    net, points = import_reference("mine:net"), import_reference("mine:points")
    model, data = net(4), points()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = train(recipe(), "run", model=model, data=data)
    assert result.model is model and not torch.equal(before[0], model[0].weight)
    assert result.line["sparsity"] == pytest.approx(0.7, abs=0.01)
    export(result, out="own.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession("own.onnx", providers=["CPUExecutionProvider"])
    inputs = data[1][0]
    (logits,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(inputs).numpy(), rtol=1e-4, atol=1e-5)
    assert export(result, out="own.safetensors", packed=True).digest == read_model(folder / "own.onnx").digest()
    with pytest.raises(RecipeError, match="data', an object that was given to the call"):
        open_source("run/recipe.toml")
    again = train(recipe("training.steps=60"), "twin", model=net(4), data=data)
    assert again.line == result.line


def test_torch_datasets_give_what_their_tensors_give(folder):
    net, points = import_reference("mine:net"), import_reference("mine:points")
    train_set, test_set = points()
    sets = tuple(torch.utils.data.TensorDataset(*part) for part in (train_set, test_set))
    first = train(recipe(), "a", model=net(4), data=(train_set, test_set))
    second = train(recipe(), "b", model=net(4), data=sets)
    assert first.line == second.line


def test_the_command_line(folder, sparsify):
    arguments = [f"--set={change}" for change in SHORT]
    done = sparsify("train", "--model", "mine:net", "--data", "mine:points", "--out", "run", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 60


def test_no_file_makes_us_import_anything(folder):
    import sys

    train(recipe(), "run", model="mine:net", data="mine:points")
    export("run", out="run.onnx")
    sys.modules.pop("mine")
    (folder / "mine.py").write_text("raise SystemExit('imported')")
    for name in ("run/model.safetensors", "run.onnx"):
        model = open_source(name)
        package.inspect(name)
        with pytest.raises(FormatError, match="not imported because a file names it"):
            build_module(model)
    with pytest.raises(FormatError, match="Export it from the folder of its run"):
        export("run/model.safetensors", out="again.onnx")
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        ("mine:net", "yours:points", RecipeError, "no module 'yours'"),
        ("mine:nett", "mine:points", RecipeError, "mine has no function 'nett'. Did you mean net or points?"),
        ("mine:broken", "mine:points", RecipeError, "no function 'broken'"),
        ("mine:nothing", "mine:points", RecipeError, "has to return a torch.nn.Module and returned a int"),
        ("mine:net", "mine:nothing", DataError, "Data of your own has to be a pair"),
        ("bad:net", "mine:points", RecipeError, "ZeroDivisionError: division by zero. Mend bad"),
        (nn.Linear(3, 2), "mine:points", RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_what_goes_wrong_is_said(folder, model, data, error, message):
    (folder / "bad.py").write_text("1 / 0")
    with pytest.raises(error, match=message):
        train(recipe(), "run", model=model, data=data)


def test_small_dense_needs_a_width(folder):
    with pytest.raises(RecipeError, match="has no width_multiplier"):
        train(recipe("topology.method=small_dense"), "run", model="mine:net", data="mine:points")


@pytest.mark.parametrize(
    "data", [((), ()), (torch.zeros(3), torch.zeros(3)), ([], []), ((torch.zeros(3, 2), torch.zeros(2)),) * 2]
)
def test_data_that_is_none(folder, data):
    with pytest.raises(DataError, match="Data has to be a pair"):
        train(recipe(), "run", model="mine:net", data=data)
