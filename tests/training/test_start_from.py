"""A run that starts from another's masks, or from its weights and masks."""

from __future__ import annotations

import shutil

import pytest
import torch

from sparsify.data import load_data
from sparsify.errors import RecipeError
from sparsify.formats import read_model
from sparsify.recipe import load_recipe
from sparsify.training.loop import train
from sparsify.training.snapshot import build_network
from sparsify.training.start import first_network


@pytest.fixture
def info():
    return load_data("digits", {}).info


def test_masks_of_another_run_and_weights_of_the_seed(finished_run, info):
    recipe = load_recipe(None, [f"topology.masks_from={finished_run}", "training.seed=7"])
    model, _, masks = first_network(recipe, info)
    other = read_model(finished_run / "model.safetensors")
    assert masks.digest() == other.digest()
    dense, _, _ = build_network(recipe, info, sparsity=0.0)
    parameters = dict(dense.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(dict(model.named_parameters())[name], parameters[name] * mask)


def test_weights_and_masks_of_another_run(finished_run, info):
    model, _, masks = first_network(load_recipe(None, [f"training.start_from={finished_run}"]), info)
    other = read_model(finished_run / "model.safetensors")
    assert masks.digest() == other.digest()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(other.tensors[name]))


def test_it_trains_on_and_resumes_without_the_other(finished_run, tmp_path):
    source = shutil.copytree(finished_run, tmp_path / "source")
    recipe = load_recipe(None, [f"training.start_from={source}", "training.steps=6", "topology.method=set"])
    with_it = train(recipe, tmp_path / "a").folder
    assert (read_model(with_it / "model.safetensors").tensors.keys()) == read_model(
        source / "model.safetensors"
    ).tensors.keys()
    (with_it / "model.safetensors").unlink()
    shutil.rmtree(source)
    train(None, with_it, resume=True)
    assert (with_it / "model.safetensors").is_file()


def test_another_network(finished_run, tmp_path):
    with pytest.raises(RecipeError, match="does not hold masks for this recipe's network"):
        train(load_recipe(None, ["model.hidden=[20]", f"topology.masks_from={finished_run}"]), tmp_path / "run")
