"""PlanesBatchNorm2d is torch's BatchNorm2d, whatever its output goes to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.engine.target import host
from sparsify.nn.norm import PlanesBatchNorm2d
from sparsify.nn.pending import Pending

BATCH = 2 * host().width


class Double(torch.autograd.Function):
    """What autograd is told without a function of torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy * 2


def pair(**options: Any) -> tuple[nn.BatchNorm2d, PlanesBatchNorm2d]:
    norm = nn.BatchNorm2d(5, **options)
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
    return norm.double(), PlanesBatchNorm2d.like(copy.deepcopy(norm).float())


def images(mean: float = 7.0) -> Tensor:
    return (torch.randn(6, 3, 5, BATCH, dtype=torch.float64) * 3 + mean).permute(3, 2, 0, 1)


def compare(norm: nn.Module, ours: nn.Module, x: Tensor, then: Callable[[Tensor], Tensor]) -> None:
    results = []
    for module, given in ((norm, x), (ours, x.float())):
        given = given.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        output = then(module(given))
        output.backward((torch.arange(output.numel()).cos()).view_as(output).to(output.dtype))
        results.append([output.detach(), given.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    for found, wanted in zip(results[1], results[0], strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        assert torch.allclose(found.double(), wanted.double(), rtol=0, atol=2e-5 * scale)


USES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu in place": torch.relu_,
    "module in place": nn.ReLU(inplace=True),
    "nothing": lambda y: y * 1,
    "both": lambda y: F.relu(y) + y,
    "a list": lambda y: torch.cat([y, y.relu()])[: len(y)],
    "another function": F.silu,
    "an autograd function": Double.apply,
    "in place, then itself": lambda y: (y.relu_(), y + 1)[1],
    "dropout of nothing": lambda y: F.relu(F.dropout(y, 0.0)),
}


@pytest.mark.parametrize("use", USES)
def test_results_and_gradients_are_those_of_torch_in_float64(use):
    torch.manual_seed(0)
    compare(*pair(), images(), USES[use])


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_running_statistics_over_several_batches(mean):
    torch.manual_seed(0)
    norm, ours = pair(momentum=None)
    for _ in range(3):
        x = images(mean)
        norm(x), ours(x.float())
    assert torch.allclose(ours.running_mean.double(), norm.running_mean, rtol=1e-6)
    assert torch.allclose(ours.running_var.double(), norm.running_var, rtol=1e-4) and ours.num_batches_tracked == 3
    norm.eval(), ours.eval()
    x = images(mean)
    with torch.no_grad():
        y = F.relu(ours(x.float()))
    assert y.stride() == x.stride() and torch.allclose(y.double(), F.relu(norm(x)), atol=1e-3 if mean else 1e-5)
    compare(norm, ours, x, F.relu)


def test_what_is_not_in_planes_is_left_to_torch():
    torch.manual_seed(0)
    for x in (images().contiguous(), images()[:3], images()[:, :, :1]):
        compare(*pair(), x, F.relu)
    ours = pair()[1]
    assert not isinstance(ours(images().contiguous().float()), Pending)
    assert not torch.isfinite(F.relu(ours((images() * torch.nan).float()))).any(), "what is not a number stays none"


def test_shape_is_known_before_anything_is_computed():
    output = pair()[1](images().float())
    assert type(output) is Pending and output.shape == (BATCH, 5, 6, 3) and output.dtype == torch.float32
    assert output.done is None and output.requires_grad
    assert torch.equal(F.relu(output), output.clamp(min=0))


def test_names_are_those_of_torch_there_and_back():
    norm, ours = pair()
    assert list(ours.state_dict()) == list(norm.state_dict()) and isinstance(ours, nn.BatchNorm2d)
    back = ours.dense_layer()
    assert type(back) is nn.BatchNorm2d and back.weight is ours.weight
