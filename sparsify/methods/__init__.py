"""Methods of training sparse networks. One file each, one final class each.

A method says which connections go and which come. It never sees an optimizer, a model, a device or a
recipe: `training/step.py` alone decides the order of mask update, optimizer step and reset of moments. Its
options are the fields of its class, which the recipe's table [topology.options] sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsify.topology.connections import Connections as Connections
from sparsify.topology.connections import Moment, Network
from sparsify.topology.reallocate import exchange
from sparsify.topology.select import random_mask

Memory = Mapping[str, float]  # what a method remembers from one update to the next


class Method:
    """What all methods share: by default the connections chosen at the start stay.

    A method that updates masks either scores connections (`drop_score`, `grow_score`), and each layer keeps
    its count, or writes an `update` of its own out of the functions in `topology/`.
    """

    sparse: ClassVar[bool] = True  # False: every weight exists whatever sparsity is asked for
    updates_masks: ClassVar[bool] = False  # connections change during training
    needs_dense_gradients: ClassVar[bool] = False  # at an update, also where no connection exists
    replaces_step: ClassVar[bool] = False  # an update takes the place of that batch's gradient step
    starts_with_update: ClassVar[bool] = False  # one update by the first batch's gradient, before training
    moves_between_layers: ClassVar[bool] = False  # only the network's count is kept, not each layer's
    equal_width: ClassVar[bool] = False  # trains a narrower network of the cost that `equal` names
    equal: Literal["parameters", "flops"] = "parameters"
    momentum: float = 0.0  # decay of the running mean of dense gradients to keep; 0 keeps none

    @property
    def sees_single_connections(self) -> bool:
        """Whether an update needs no more than scores of connections one by one, so that it can go block by block."""
        return type(self).update is Method.update and not (self.momentum or self.starts_with_update)

    def initial_sparsity(self, sparsity: float) -> float:
        """Sparsity at the start of a training that is to end at `sparsity`."""
        return 0.0 if self.starts_with_update or not self.sparse else sparsity

    def planned_count(self, initial: int, final: int, progress: float) -> int:
        """Connections of a layer (summed up: of the network) after an update at this progress, 0 to 1."""
        return final if self.sparse else initial

    def count_tolerance(self, shape: tuple[int, ...]) -> int:
        """Connections by which a layer may miss its planned count, for the sake of a pattern."""
        return 0

    def draw(self, shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
        """A random mask to start from, of the weight's shape, with `count` connections."""
        return random_mask(shape, count, generator)

    def memory(self) -> Memory:
        """What the method remembers before the first update."""
        return {}

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        """The next masks, and what to remember. The network has a layer at least; nothing is changed in place."""
        return exchange(network, moment.drop_fraction, self.drop_score, self.grow_score), memory

    def drop_score(self, layer: Connections) -> Tensor:
        """Importance of each existing connection; the smallest are dropped."""
        return layer.weight.abs()

    def grow_score(self, layer: Connections) -> Tensor:
        """Promise of each absent connection; the largest are grown."""
        raise NotImplementedError(f"{type(self).__name__} does not grow connections")


def gradient_magnitude(layer: Connections) -> Tensor:
    """Size of the loss's gradient for each weight, whether or not it exists."""
    assert layer.gradient is not None
    return layer.gradient.abs()
