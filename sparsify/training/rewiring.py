"""A mask update of a network in which some layers hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsify.methods import Method
from sparsify.nn import SparseLayer
from sparsify.nn.growth import Rewiring, exchange
from sparsify.topology.connections import Moment, Network
from sparsify.topology.costs import Layer
from sparsify.training.slots import slots

Sparse = Mapping[str, SparseLayer]  # by the weight's name


def update_in_order(
    layers: Iterable[Layer], method: Method, network: Network, sparse: Sparse, gathered: Mapping[str, Tensor],
    moment: Moment, random: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Rewiring]]:  # fmt: skip
    """The next masks of the network's matrices, and the next connections of the sparse layers; nothing is changed.

    layers: in the order in which random numbers are drawn for them. gathered: dense gradients of
    earlier batches, of sparse layers. The method sees single connections only, so that layers may be asked one by one.
    """
    chosen: dict[str, Tensor] = {}
    rewired: dict[str, Rewiring] = {}
    for layer in layers:
        if layer.name in sparse:
            rewired[layer.name] = exchange(
                sparse[layer.name], moment.drop_fraction, method.drop_score, method.grow_score, random, layer.parts,
                gathered.get(layer.name),
            )  # fmt: skip
        elif layer.matrices[0] in network:
            own = Network({name: network[name] for name in layer.matrices})
            chosen |= method.update(own, moment, {})[0]
    return chosen, rewired


def move_values(optimizer: torch.optim.Optimizer, sparse: Sparse, rewired: Mapping[str, Rewiring]) -> None:
    """Values and slots follow their connections; those of new ones are 0."""
    for name, change in rewired.items():
        layer = sparse[name]
        for tensor in [layer.weight.data, *slots(optimizer, layer.weight)]:
            change.move(tensor)
        layer.set_pattern(change.pattern)
