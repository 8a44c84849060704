"""Sparse computation trains what masked computation trains, and either goes on where the other stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsify.architectures._recurrent import GATES
from sparsify.errors import InterruptedTraining, RecipeError
from sparsify.nn import SparseLinear
from sparsify.recipe import Optimizer, Recipe, load_recipe
from sparsify.report.inspection import inspect
from sparsify.sources import export, open_source
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training import deferred
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.compute import positions_of
from sparsify.training.loop import train, training
from sparsify.training.run_folder import model_file
from sparsify.training.snapshot import load_method
from sparsify.training.step import Topology, TrainState, finish_step, record_gradients

SETTINGS = ["training.steps=40", "topology.delta_t=8", "topology.t_end=1.0", "topology.sparsity=0.9"]


OPTIMIZERS = {
    "sgd": Optimizer(name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "adam": Optimizer(name="adam", lr=0.01, weight_decay=1e-4),
}


def recipe(*changes: str, optimizer: str = "sgd") -> Recipe:
    return load_recipe(None, [*SETTINGS, *changes]).model_copy(update={"optimizer": OPTIMIZERS[optimizer]})


@pytest.mark.parametrize("method, batches", [("rigl", 1), ("rigl", 5), ("set", 5), ("static", 1)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_agree_update_by_update(method, batches, optimizer, tmp_path, states):
    given = recipe(f"topology.method={method}", f"topology.growth_batches={batches}", optimizer=optimizer)
    lines = [train(given, tmp_path / c, compute=c).line for c in ("masked", "sparse")]
    masked, sparse = states[:40], states[40:]
    assert set(sparse[0].masks.positions) == {"1.weight", "3.weight"}, "the last layer is too dense to gain"
    for ours, theirs in zip(sparse, masked, strict=True):
        assert ours.updates == theirs.updates and ours.masks.digest() == theirs.masks.digest(), f"step {ours.step}"
    assert (masked[-1].updates == 5) == (method != "static")
    for key in ("loss", "test_loss", "training_flops", "active_neurons", "churn", "grown", "sparsity", "itop_rate"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-4), key


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("model", ["char_gru", "char_lstm"])
def test_masks_of_gates_agree_update_by_update(model, large, tmp_path, states, monkeypatch):
    """Also where the gates count as large and are never drawn as a whole."""
    text = np.random.default_rng(0).integers(97, 123, 4000, np.uint8).tobytes()
    (tmp_path / "text").write_bytes(text)
    changes = [f"data.path={tmp_path / 'text'}", f"data.size={len(text)}", "data.test_bytes=500", "data.length=20"]
    changes += [f"model.name={model}", "model.hidden=48", "model.embedding=24", "model.readout=[32]"]
    changes += ["training.steps=12", "topology.delta_t=3", "topology.sparsity=0.8", "data.name=text"]
    given = load_recipe("char-gru-enwik8", changes)
    if large:
        monkeypatch.setattr(deferred, "LARGE", 2000)
    lines = [train(given, tmp_path / c, compute=c).line for c in ("masked", "sparse")]
    masked, sparse = states[:12], states[12:]
    assert sum("_gate" in name for name in sparse[0].masks.positions) == 2 * len(GATES[model.removeprefix("char_")])
    for ours, theirs in zip(sparse, masked, strict=True):
        assert ours.updates == theirs.updates and ours.masks.digest() == theirs.masks.digest(), f"step {ours.step}"
    assert sparse[-1].updates == 4
    for key in ("loss", "test_loss", "training_flops", "active_neurons", "churn", "grown", "sparsity"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-4), key


@pytest.mark.parametrize("first, then", [("masked", "sparse"), ("sparse", "masked"), ("sparse", None)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_moves_through_its_checkpoint(first, then, optimizer, tmp_path, states):
    given = recipe("training.steps=50", "topology.growth_batches=6", optimizer=optimizer)  # 19 to 24 are for an update
    whole = train(given, tmp_path / "whole", compute="masked").line
    wanted = states[-1]
    steps = training(given, tmp_path / "run", compute=first)
    with pytest.raises(InterruptedTraining, match="Stopped after step 21"):
        for progress in steps:
            if progress.step == 20:
                signal.raise_signal(signal.SIGTERM)
    assert read_checkpoint(tmp_path / "run/checkpoint.pt")["sparse"] == (
        ["1.weight", "3.weight"] if first == "sparse" else []
    )
    assert open_source(tmp_path / "run").metadata.training["steps"] == 21
    line = train(None, tmp_path / "run", resume=True, compute=then).line
    assert bool(states[-1].masks.positions) == (then != "masked")
    assert states[-1].masks.digest() == wanted.masks.digest()
    assert line["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-4)
    ours, theirs = (open_source(tmp_path / name) for name in ("run", "whole"))
    assert line["itop_rate"] == whole["itop_rate"]
    for name, tensor in theirs.tensors.items():
        assert torch.allclose(torch.from_numpy(ours.tensors[name]), torch.from_numpy(tensor), atol=1e-4), name
    assert ours.metadata.mask_digest == theirs.metadata.mask_digest


@pytest.mark.parametrize("batches", [1, 8])
def test_stopped_and_resumed_sparse_runs_end_with_the_same_bits(batches, tmp_path, states):
    given = recipe(f"topology.growth_batches={batches}")
    whole = train(given, tmp_path / "whole", compute="sparse").folder
    steps = training(given, tmp_path / "run", compute="sparse")
    with pytest.raises(InterruptedTraining):
        for progress in steps:
            if progress.step == 18:
                signal.raise_signal(signal.SIGTERM)
    train(None, tmp_path / "run", resume=True)
    files = [model_file(folder).read_bytes() for folder in (whole, tmp_path / "run")]
    assert files[0] == files[1]
    assert not (whole / "model.safetensors").exists(), "nothing of the dense weights' size"
    for kind, name in (("safetensors", "dense.safetensors"), ("onnx", "dense.onnx")):
        assert export(whole, out=tmp_path / name).digest == inspect(whole).mask_digest, kind


@pytest.mark.parametrize(
    "change, reason",
    [
        ("topology.method=snfs", "more than single connections"),
        ("training.precision=bfloat16", "float32"),
        ("training.compile=true", "compile"),
        ("training.ema=0.9", "ema"),
    ],
)
def test_what_cannot_be_sparse_says_so(change, reason, tmp_path):
    with pytest.raises(RecipeError, match=reason):
        train(recipe(change), tmp_path / "run", compute="sparse")
    assert not (tmp_path / "run").exists()


def test_a_dense_gradient_that_is_not_finite_puts_an_update_off():
    """Also where the gradients of all existing connections are finite."""
    model = torch.nn.Sequential(SparseLinear(8, 4, torch.arange(4)))
    masks = Masks({}, positions=positions_of(model))
    topology = Topology(load_method("rigl"), UpdateSchedule(delta_t=1, alpha=0.5, t_end=10), 0)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=0.1), masks)
    for step, broken in ((1, True), (2, False)):
        record_gradients(state, topology)
        model(torch.randn(3, 8)).square().sum().backward()
        if broken:
            model[0].tape[0][0][7, 0] = torch.inf
        before = model[0].to_dense()
        state = finish_step(state, topology)
        assert state.update_pending == broken and state.updates == step - 1 and model[0].tape is None
        assert not broken or torch.equal(model[0].to_dense(), before)


def test_command_line(sparsify, tmp_path):
    changes = ["--set", "topology.delta_t=4", "--set", "topology.t_end=1.0"]
    done = sparsify("train", "--steps", "10", "--compute", "sparse", "--out", "run", "--json", *changes)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    step, update, behind = (printed[f"{name}step_seconds"] for name in ("", "update_", "next_"))
    more = max(0, 2 * (behind - step))  # the first step does not count; behind the updates at 4 and 8 stand 5 and 9
    assert printed["update_share"] == pytest.approx((2 * update + more) / (5 * step + 2 * update + 2 * behind))
    assert read_checkpoint(Path(tmp_path / "run/checkpoint.pt"))["sparse"] == ["1.weight", "3.weight"]
    done = sparsify("train", "--steps", "10", "--compute", "sparse", "--method", "snip", "--out", "other")
    assert done.returncode == 2 and "--compute sparse is not possible here" in done.stderr


def test_large_layers_are_never_dense(tmp_path, states, monkeypatch):
    """A run whose layers count as large is that of layers that do not, and draws its network in parts."""
    whole = train(recipe(), tmp_path / "whole", compute="sparse").line
    digests = [state.masks.digest() for state in states]
    states.clear()
    monkeypatch.setattr(deferred, "LARGE", 5000)
    monkeypatch.setattr(SparseLinear, "from_dense", lambda *_: pytest.fail("a dense layer was made"))
    part = train(recipe(), tmp_path / "part", compute="sparse").line
    assert [state.masks.digest() for state in states] == digests and part["test_loss"] == whole["test_loss"]
