"""Slots: what an optimizer keeps for each entry of a weight, whatever the optimizer is.

A slot is any tensor of the weight's shape in its state, inside lists and dictionaries too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def slots(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    """The slots of one weight."""
    return [tensor for tensor in _tensors(optimizer.state.get(weight, {})) if tensor.shape == weight.shape]


def reset_slots(optimizer: torch.optim.Optimizer, weight: Tensor, lasting: Tensor) -> None:
    """Zero the slots of a weight where `lasting` is False."""
    for slot in slots(optimizer, weight):
        slot.masked_fill_(~lasting, 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
