"""An exponential moving average (EMA) of a network's weights, as sparse as the network itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

Average = Mapping[str, Tensor]  # every tensor of the model's state, by its name; empty before the first step


def start_average(model: nn.Module) -> dict[str, Tensor]:
    """The average of one model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def update_average(average: Average, model: nn.Module, decay: float, step: int) -> Average:
    """The average after a step, changed in place; integer tensors, which count, are copied.

    The decay is min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten. A weight
    outside its mask is 0 in the model, so its average is kept at 0 by `clear_average` at the update that drops it.
    """
    if not average:
        return start_average(model)
    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, share)
            else:
                average[name].copy_(tensor)
    return average


def clear_average(average: Average, name: str, lasting: Tensor) -> None:
    """Zero a weight's average where `lasting` is False: the connection is new or gone."""
    if average:
        average[name].masked_fill_(~lasting, 0)


@contextlib.contextmanager
def averaged(model: nn.Module, average: Average) -> Iterator[None]:
    """The model with its average's weights inside the block, and with its own afterwards."""
    if not average:
        yield
        return
    own = start_average(model)
    model.load_state_dict(dict(average))
    try:
        yield
    finally:
        model.load_state_dict(own)
