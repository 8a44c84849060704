"""Paths between solutions: their ends, their subspace, and what fitting them gains."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from sparsify.errors import RecipeError
from sparsify.interpolation import barrier, bezier, fit, landscape, loss_at, straight
from sparsify.recipe import load_recipe
from sparsify.training.loop import train


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape")
    changes = ["training.steps=60", "topology.delta_t=10"]
    for method in ("static", "gradual_pruning"):
        train(load_recipe(None, [*changes, f"topology.method={method}"]), folder / method)
    return folder / "static", folder / "gradual_pruning"


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_straight_curve_is_the_line(degree):
    start, end = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, -2.0])}
    for t in (0.0, 0.25, 1.0):
        expected = (1 - t) * start["w"] + t * end["w"]
        torch.testing.assert_close(bezier(straight(start, end, degree), t)["w"], expected)


def test_a_cubic_by_hand():
    control = [{"w": torch.tensor(value)} for value in (1.0, 0.0, 0.0, 0.0)]
    assert float(bezier(control, 0.5)["w"]) == pytest.approx(1 / 8)


def test_the_barrier_is_above_the_straight_line_between_the_losses():
    assert barrier([0.0, 0.5, 1.0], [1.0, 5.0, 3.0]) == pytest.approx(3.0)
    assert barrier([0.0, 0.5, 1.0], [1.0, 0.5, 3.0]) == 0


def test_fitting_finds_the_way_around_a_hill_and_stays_in_its_subspace():
    """A loss that is highest on the line between two solutions: the curve bends, but only where it may."""

    class Ring(nn.Module):  # logits whose loss is least where w lies on the unit circle
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            off = (self.w.square().sum() - 1).square()
            return torch.stack([-8 * off, 8 * off]).expand(len(inputs), 2)

    start, end = {"w": torch.tensor([1.0, 0.0, 0.0])}, {"w": torch.tensor([-1.0, 0.0, 0.0])}
    control = straight(start, end, 3)
    control = [control[0], *({"w": p["w"] + torch.tensor([0.0, 0.1, 0.0])} for p in control[1:-1]), control[-1]]
    held = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    allowed = {"w": torch.tensor([True, True, False])}
    fitted = fit(Ring(), control, lambda step: held, 200, allowed, 0.05)
    on_the_line = loss_at(Ring(), bezier(straight(start, end, 3), 0.5), held)
    assert on_the_line == pytest.approx(math.log1p(math.exp(16)))
    assert loss_at(Ring(), bezier(fitted, 0.5), held) < 0.1 * on_the_line
    assert fitted[0] is control[0] and fitted[-1] is control[-1]
    assert all(float(p["w"][2]) == 0 for p in fitted) and float(fitted[1]["w"][1]) > 0.5


def test_two_runs(two_runs):
    found = landscape(*two_runs, points=5, steps=60, samples=400)
    assert [(p.curve, p.space) for p in found.paths] == [
        ("line", None), ("quadratic", "sparse"), ("quadratic", "full"), ("cubic", "sparse"), ("cubic", "full"),
    ]  # fmt: skip
    line, *curves = found.paths
    for path in curves:
        assert (path.losses[0], path.losses[-1]) == (line.losses[0], line.losses[-1])
        assert sum(path.losses) < sum(line.losses)
    assert found == landscape(*two_runs, points=5, steps=60, samples=400)


def test_batch_norm_is_computed_anew(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    inputs, labels = torch.randn(600, 3), torch.randint(0, 2, (600,))
    point = {name: p.detach() for name, p in module.named_parameters()}
    loss = loss_at(module, point, (inputs, labels))
    hidden = inputs.double() @ point["0.weight"].double().T + point["0.bias"].double()
    halves = hidden.split(500)  # as loss_at evaluates them; the running statistics are the mean over batches
    mean = torch.stack([h.mean(0) for h in halves]).mean(0)
    variance = torch.stack([h.var(0) for h in halves]).mean(0)
    outputs = ((hidden - mean) / (variance + 1e-5).sqrt()) @ point["2.weight"].double().T + point["2.bias"].double()
    assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, labels)), rel=1e-5)


def test_the_command_writes_a_picture_and_json(two_runs, sparsify, tmp_path):
    names = [str(path) for path in two_runs]
    short = ["--points", "3", "--steps", "2", "--samples", "100", "--curve", "quadratic", "--space", "sparse"]
    done = sparsify("landscape", *names, *short, "--plot", "l.svg", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["positions"] == [0, 0.5, 1] and len(found["paths"]) == 2 and found["samples"] == 100
    assert b"</svg>" in (tmp_path / "l.svg").read_bytes()
    table = sparsify("landscape", *names, *short).stdout
    assert "quadratic" in table and f"{found['paths'][1]['losses'][0]:.4f}" in table


def test_ends_of_different_problems_and_bad_numbers(two_runs, tmp_path):
    other = train(load_recipe(None, ["training.steps=1", "model.hidden=[20]"]), tmp_path / "other").folder
    with pytest.raises(RecipeError, match="not two solutions of one problem"):
        landscape(two_runs[0], other)
    with pytest.raises(RecipeError, match="no curve called 'quartic'"):
        landscape(*two_runs, curves=["quartic"])
    with pytest.raises(RecipeError, match="at least 3 points"):
        landscape(*two_runs, points=2)
