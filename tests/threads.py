"""What threads must not change, for tests of native products."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def assert_same_bits(results: Callable[[], Iterable[Tensor]]) -> None:
    """What a function returns has the same bits with one, two and three threads, and with two again."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append([tensor.clone() for tensor in results()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other, found[0], strict=True))


def output_and_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """A layer's output, and the gradients of its weight and of x under a loss that is not linear."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    output = layer(x)
    output.square().sum().backward()
    return [output.detach(), layer.get_parameter("weight").grad, x.grad]
