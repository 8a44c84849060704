"""Sums and ReLUs that are computed in one pass with what they take are those of plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.engine.target import host
from sparsify.errors import SparsityError
from sparsify.nn import SparseConv2d
from sparsify.nn.convert import adopt_norms
from sparsify.nn.memory import is_free
from sparsify.nn.pending import Pending, plain

BATCH = 2 * host().width
if host().level == "generic":
    pytest.skip("there is no native code for this CPU", allow_module_level=True)


class Net(nn.Module):
    """Two convolutions and a norm between them, whose results `then` puts together."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(5, 5, 3, padding=1) for _ in range(2))
        self.norm, self.then = nn.BatchNorm2d(5), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.first(x))


def in_place(net: Any, x: Tensor) -> Tensor:
    y = net.second(F.relu(net.norm(x)))
    y += x
    return F.relu(y) + y


USES: dict[str, Callable[..., Tensor]] = {
    "residual": lambda net, x: x + net.second(F.relu(net.norm(x))),
    "residual, twice": lambda net, x: x + net.second(F.relu(net.norm(x))) + x,
    "residual after a norm without ReLU": lambda net, x: net.second(net.norm(x)) + x,
    "of what the ReLU left": lambda net, x: (lambda z: z + net.second(z))(F.relu(net.norm(x))),
    "two convolutions": lambda net, x: net.first(x) + net.second(x),
    "itself": lambda net, x: (lambda y: y + y)(net.second(x)),
    "residual alone": lambda net, x: (lambda z, y: x + y)(F.relu(net.norm(x)), net.second(x.detach())),
    "in place": in_place,
    "number": lambda net, x: net.second(x) + 1,
    "broadcast": lambda net, x: net.second(x) + x[:, :1],
    "other order": lambda net, x: net.second(x) + x.contiguous(),
    "scaled": lambda net, x: torch.add(x, net.second(x), alpha=2),
    "norm of a sum": lambda net, x: F.relu(net.norm(x + net.second(x))),
}


@pytest.mark.parametrize("batch", [BATCH, BATCH + 3])
@pytest.mark.parametrize("use", USES)
def test_results_and_gradients_are_those_of_torch_in_float64(use, batch):
    torch.manual_seed(0)
    dense = Net(USES[use])
    ours = Net(USES[use])
    ours.load_state_dict(dense.state_dict())
    for name in ("first", "second"):
        ours.set_submodule(name, SparseConv2d.from_dense(getattr(ours, name), torch.ones(5, 5, 3, 3, dtype=torch.bool)))
    adopt_norms(ours)
    x, results = torch.randn(batch, 5, 6, 3), []
    for net, given in ((dense.double(), x.double()), (ours, x.clone())):
        given.requires_grad_()
        output = net(given)
        output.backward(torch.arange(output.numel()).cos().view_as(output).to(output.dtype))
        results.append([output.detach(), given.grad, *(p.grad for p in net.parameters())])
    for found, wanted in zip(results[1], results[0], strict=True):
        assert (found is None) == (wanted is None)
        if wanted is None:
            continue
        scale = max(1.0, float(wanted.abs().max()))
        assert torch.allclose(found.double().flatten(), wanted.flatten(), rtol=0, atol=3e-5 * scale)


def layer() -> SparseConv2d:
    return SparseConv2d(4, 4, 3, torch.arange(0, 144, 3), padding=1)


def test_a_sum_waits_as_the_convolution_does():
    first, second = layer(), layer()
    x = torch.randn(BATCH, 4, 5, 5)
    y = first(x)
    total = y + second(x)
    assert type(y) is type(total) is Pending and y.done is not None and total.done is None
    assert torch.equal(plain(total), plain(y) + plain(second(x)))
    with torch.no_grad():
        assert type(first(x)) is Tensor, "nothing waits where there is no graph"


def test_weights_may_change_before_the_output_is_used():
    conv = layer()
    x = torch.randn(BATCH, 4, 5, 5)
    with torch.no_grad():
        wanted = conv(x)
    found = conv(x)
    conv.weight.data.zero_()
    assert torch.equal(found, wanted)


def test_an_input_that_changes_before_the_output_is_used_is_an_error():
    x = torch.randn(BATCH, 4, 5, 5)
    output = layer()(x)
    x.zero_()
    with pytest.raises(SparsityError, match="changed in place"):
        output.sum()


def test_a_graph_without_backward_is_let_go():
    conv, norm = layer(), nn.Sequential(layer(), nn.BatchNorm2d(4))
    adopt_norms(norm)
    x = norm[0](torch.randn(BATCH, 4, 5, 5))
    total = x + conv(F.relu(norm[1](x)))
    storage = plain(x).untyped_storage()
    assert plain(total).requires_grad and not is_free(storage)
    del x, total
    assert is_free(storage)
