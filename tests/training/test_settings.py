"""The settings of a recipe do what they say."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sparsify.recipe import LearningRate, Optimizer, load_recipe
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.learning_rate import learning_rate
from sparsify.training.loop import train
from sparsify.training.metrics import read_metrics
from sparsify.training.optimizer import build_optimizer

SHORT = ["training.steps=30", "topology.delta_t=10"]


def weights(folder) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoint.pt")["model"]


def test_the_papers_learning_rate_for_wide_resnets():
    recipe = load_recipe("wrn-22-2-cifar10")
    rates = {
        s: learning_rate(0.1, recipe.learning_rate, s, 97_656) for s in (1, 30_000, 30_001, 60_001, 90_001, 97_656)
    }
    assert rates == pytest.approx({1: 0.1, 30_000: 0.1, 30_001: 0.02, 60_001: 0.004, 90_001: 0.0008, 97_656: 0.0008})


def test_warm_up_and_cosine():
    settings = LearningRate(schedule="cosine", warmup=0.1)
    rates = [learning_rate(1.0, settings, step, 100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * s for s in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[55] == pytest.approx((1 + math.cos(math.pi / 2)) / 2)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_only_matrices_and_kernels_are_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = build_optimizer(model, Optimizer(name="adamw", lr=0.1, weight_decay=0.5, betas=[0.8, 0.9]))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.5, "3.bias": 0.0,
    }  # fmt: skip
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = train(load_recipe(None, SHORT), tmp_path / "whole").folder
    parts = train(load_recipe(None, [*SHORT, "training.accumulate=4"]), tmp_path / "parts").folder
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-3, atol=1e-5)


def test_clipping_bounds_the_step(tmp_path):
    """With plain SGD at rate 1 the parameters move by at most clip_norm in a step."""
    changes = ["training.steps=1", "training.clip_norm=0.01", "optimizer.lr=1.0", "optimizer.momentum=0.0"]
    changes += ["optimizer.nesterov=false", "optimizer.weight_decay=0.0", "learning_rate.schedule=constant"]
    from sparsify.data import data_info
    from sparsify.training.snapshot import build_network

    recipe = load_recipe(None, changes)
    before, _, _ = build_network(recipe, data_info("digits", {}))
    after = weights(train(recipe, tmp_path / "run").folder)
    moved = sum(((after[name] - p.detach()) ** 2).sum().item() for name, p in before.named_parameters()) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_trains_and_keeps_the_masks(tmp_path):
    run = train(
        load_recipe(None, ["training.steps=150", "topology.delta_t=50", "training.precision=bfloat16"]),
        tmp_path / "run",
    )
    content = read_checkpoint(run.folder / "checkpoint.pt")
    assert run.line["test_accuracy"] > 0.8 and run.line["updates"] == 2
    for name, mask in content["masks"].items():
        assert content["model"][name].dtype == torch.float32 and not content["model"][name][~mask].any()


def test_label_smoothing_raises_the_training_loss(tmp_path):
    """Uniform targets with weight 0.5 leave a loss of at least the targets' entropy, 1.7 nats for ten classes."""
    plain = train(load_recipe(None, ["training.steps=200"]), tmp_path / "plain")
    smooth = train(load_recipe(None, ["training.steps=200", "training.label_smoothing=0.5"]), tmp_path / "smooth")
    targets = [0.55] + [0.05] * 9
    entropy = -sum(p * math.log(p) for p in targets)
    assert plain.line["loss"] < 0.5 and smooth.line["loss"] > entropy


def test_metrics_say_what_happened(finished_run):
    lines = read_metrics(finished_run)
    assert [line["step"] for line in lines] == [23, 45, 50, 60]
    assert [line["updates"] for line in lines] == [2, 4, 4, 4]  # t_end is step 45
    assert [line["grown"] > 0 for line in lines] == [True, True, False, False]
    assert lines[0]["drop_fraction"] > lines[1]["drop_fraction"] >= lines[2]["drop_fraction"] == 0
    assert ["test_accuracy" in line for line in lines] == [True, True, False, True]
    assert all(line["sparsity"] == lines[0]["sparsity"] for line in lines)


def test_tensorboard_holds_the_same(finished_run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()
    expected = [(line["step"], line["loss"]) for line in read_metrics(finished_run)]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in expected]


def test_real_mnist_trains_with_every_method(real_data, tmp_path):
    from sparsify import registry

    folder = real_data("mnist")
    for method in registry.names("methods"):
        changes = ["training.steps=300", "topology.sparsity=0.9", f"topology.method={method}"]
        recipe = load_recipe("lenet-300-100-mnist", changes)
        assert train(recipe, tmp_path / method, data=folder).line["test_accuracy"] > 0.7


def test_real_cifar10_trains_a_few_steps(real_data, tmp_path):
    changes = ["training.steps=4", "training.batch_size=32", "topology.delta_t=2", "model.depth=10", "model.width=1"]
    run = train(load_recipe("wrn-22-2-cifar10", changes), tmp_path / "run", data=real_data("cifar-10-batches-bin"))
    assert run.line["updates"] == 1 and math.isfinite(run.line["test_loss"])
