"""Precision, accumulation, clipping, decay, averaging and compilation: alone and together, the invariants hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsify.errors import DivergedError, RecipeError
from sparsify.formats import read_model
from sparsify.recipe import load_recipe, parse_recipe
from sparsify.training.averaging import averaged, update_average
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.loop import train
from sparsify.training.metrics import read_metrics
from sparsify.training.optimizer import build_optimizer
from sparsify.training.precision import LossScale

ADAMW = {"name": "adamw", "fused": True, "lr": 0.01, "weight_decay": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {"training": {"precision": "bfloat16"}},
    "float16": {"training": {"precision": "float16"}},
    "float16 that overflows": {"training": {"precision": "float16", "loss_scale": 2.0**36}},
    "accumulation": {"training": {"accumulate": 4}},
    "clipping": {"training": {"clip_norm": 0.1}},
    "coupled decay": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}},
    "decoupled decay": {
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "decoupled": True}
    },
    "fused adamw": {"optimizer": ADAMW},
    "average": {"training": {"ema": 0.9}},
    "all": {
        "training": {"precision": "float16", "loss_scale": 2.0**36, "accumulate": 4, "clip_norm": 0.5, "ema": 0.9},
        "optimizer": ADAMW,
    },
}


def recipe_with(options: dict[str, dict[str, Any]], *changes: str):
    short = ["training.steps=60", "topology.delta_t=5", f"training.evaluate_every={64 / 1438}"]
    table = load_recipe(None, [*short, *changes]).model_dump(exclude_none=True)
    table["training"] |= options.get("training", {})
    table["optimizer"] = options.get("optimizer", table["optimizer"])
    return parse_recipe(table)


def assert_invariants(folder: Path) -> None:
    """Counts at every step, zeros in weights and averages, and slots of the checkpoint."""
    content = read_checkpoint(folder / "checkpoint.pt")
    masks, average = content["masks"], content["progress"]["average"]
    by_shape = {tuple(mask.shape): mask for mask in masks.values()}
    assert len(by_shape) == len(masks)
    for name, mask in masks.items():
        assert not content["model"][name][~mask].any()
        assert not average or not average[name][~mask].any()
    found = [slot for state in content["optimizer"]["state"].values() for slot in state.values()]
    slots = [slot for slot in found if isinstance(slot, torch.Tensor) and tuple(slot.shape) in by_shape]
    assert slots and not any(slot[~by_shape[tuple(slot.shape)]].any() for slot in slots)
    lines = read_metrics(folder)
    assert len({line["sparsity"] for line in lines}) == 1
    assert lines[-1]["updates"] > 0 and lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("name", OPTIONS)
def test_invariants_hold_with_each_option_and_with_all(name, tmp_path):
    train(recipe_with(OPTIONS[name]), tmp_path / "run", device="cpu")
    assert_invariants(tmp_path / "run")


def test_update_due_while_the_scale_overflows_is_put_off_not_lost(tmp_path):
    lines = {}
    for name, scale in (("overflows", 2.0**36), ("fits", 2.0**10)):
        options = {"training": {"precision": "float16", "loss_scale": scale}}
        train(recipe_with(options), tmp_path / name, device="cpu")
        lines[name] = read_metrics(tmp_path / name)
    fits = next(line["step"] for line in lines["fits"] if line["updates"])
    late = next(line["step"] for line in lines["overflows"] if line["updates"])
    assert fits == 5 and late > 5 and late % 5, "put off to the first step with a finite gradient"
    assert lines["overflows"][late - 2]["updates"] == 0 and lines["overflows"][late - 1]["grown"] > 0


@pytest.mark.parametrize("name", ["float16 that overflows", "average", "all"])
def test_resume_is_exact(name, tmp_path):
    """The scale, the pending update and the average are part of the state."""
    whole = train(recipe_with(OPTIONS[name]), tmp_path / "whole", device="cpu").folder
    part = tmp_path / "part"
    from sparsify.training.loop import training

    for progress in training(recipe_with(OPTIONS[name]), part, device="cpu"):
        if progress.step == 7:
            break
    train(None, part, device="cpu", resume=True)
    for file in ("metrics.jsonl", "model.safetensors"):
        assert (whole / file).read_bytes() == (part / file).read_bytes()


def test_accumulated_gradient_is_the_whole_batchs(tmp_path):
    digests = set()
    for parts in (1, 4):
        run = train(recipe_with({"training": {"accumulate": parts}}), tmp_path / str(parts), device="cpu")
        digests.add(read_model(run.folder / "model.safetensors").digest())
    assert len(digests) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is none")
def test_compiled_with_everything(tmp_path):
    """In a process of its own: the compiler leaves threads and warnings behind."""
    table = recipe_with(OPTIONS["all"], "training.compile=true").model_dump(exclude_none=True)
    (tmp_path / "all.toml").write_text(parse_recipe(table).to_toml())
    arguments = [sys.executable, "-m", "sparsify", "train", str(tmp_path / "all.toml"), "--device", "cpu"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [*arguments, "--out", str(tmp_path / "run")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_invariants(tmp_path / "run")


def test_loss_scale_halves_and_doubles():
    scale = LossScale(1024.0, interval=3)
    assert scale.after(False) == LossScale(512.0, 0, 3)
    assert scale.after(True).after(True) == LossScale(1024.0, 2, 3)
    assert scale.after(True).after(True).after(True) == LossScale(2048.0, 0, 3)
    assert scale.after(True).after(False) == LossScale(512.0, 0, 3)


def test_gradients_that_no_scale_mends_are_an_error(tmp_path):
    settings = {"precision": "float16", "loss_scale": 1.0, "evaluate_every": 2.0}
    options = {"training": settings, "optimizer": {"name": "sgd", "lr": 1e30}}
    with pytest.raises(DivergedError, match="not finite however small the loss scale, at step 45"):
        train(recipe_with(options), tmp_path / "run", device="cpu")


def test_average_follows_and_is_lent_to_the_model():
    model = nn.Linear(2, 1, bias=False)
    average = update_average({}, model, 0.5, 1)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average = update_average(average, model, 0.5, 100)
    assert torch.allclose(average["weight"], first + 0.5)
    with averaged(model, average):
        assert torch.allclose(model.weight, first + 0.5)
    assert torch.allclose(model.weight, first + 1.0)


def test_final_model_holds_the_average(tmp_path):
    run = train(recipe_with(OPTIONS["average"]), tmp_path / "run", device="cpu").folder
    content = read_checkpoint(run / "checkpoint.pt")
    tensors = read_model(run / "model.safetensors").tensors
    for name, tensor in content["progress"]["average"].items():
        assert torch.equal(torch.from_numpy(tensors[name]), tensor)
        assert not torch.equal(content["model"][name], tensor)


def test_decoupled_decay_shrinks_weights_beside_the_gradient():
    settings = recipe_with(
        {"optimizer": {"name": "adam", "lr": 0.1, "weight_decay": 0.5, "decoupled": True}}
    ).optimizer  # fmt: skip
    from sparsify.training.optimizer import shrink_weights

    model = nn.Linear(2, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, settings)
    shrink_weights(optimizer)
    assert torch.allclose(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias, before["bias"])
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)


def test_decay_of_an_optimizer_without_any():
    settings = recipe_with({"optimizer": {"name": "rprop", "lr": 0.1, "weight_decay": 0.5}}).optimizer
    with pytest.raises(RecipeError, match="optimizer.decoupled=true"):
        build_optimizer(nn.Linear(2, 2), settings)
