"""Methods of training sparse networks. One file each, one final class each.

A method says which connections go and which come. It never sees an optimizer, a model, a device or a
recipe: `training/step.py` alone decides the order of mask update, optimizer step and reset of moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Connections:
    """What a method may look at in one layer. All tensors have the weight's shape."""

    mask: Tensor  # bool
    weight: Tensor
    gradient: Tensor | None  # of the loss over the whole batch, dense; where needs_dense_gradients
    generator: torch.Generator  # for random choices; on the CPU, the same on every rank


class Method:
    """What all methods share: by default the connections chosen at the start stay."""

    sparse: ClassVar[bool] = True  # False: every weight exists whatever sparsity is asked for
    updates_masks: ClassVar[bool] = False  # connections change during training
    needs_dense_gradients: ClassVar[bool] = False  # at an update, also where no connection exists
    replaces_step: ClassVar[bool] = False  # an update takes the place of that batch's gradient step

    def drop_score(self, layer: Connections) -> Tensor:
        """Importance of each existing connection; the smallest are dropped."""
        return layer.weight.abs()

    def grow_score(self, layer: Connections) -> Tensor:
        """Promise of each absent connection; the largest are grown."""
        raise NotImplementedError(f"{type(self).__name__} does not grow connections")
