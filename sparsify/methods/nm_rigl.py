"""N:M RigL: RigL with at most N connections in every group of M inputs."""

from dataclasses import dataclass
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor

from sparsify.methods import Connections, Memory, Method
from sparsify.topology.connections import Moment, Network
from sparsify.topology.patterns import draw_groups, exchange_in_groups


@final
@dataclass(frozen=True)
class NMRigL(Method):
    """RigL whose growth leaves at most N connections in each group of M consecutive inputs.

    m: inputs of a group, at one neuron and kernel position. N is the layer's density of m, rounded up, so that
    each layer keeps the count that it is allocated. The pattern is that of Zhou et al. 2021 (section 3), the
    update that of Evci et al. 2020 (algorithm 1); Lasby et al. 2024 (section 1) relate the two.
    """

    m: Annotated[int, Field(ge=2)] = 16

    updates_masks = True
    needs_dense_gradients = True
    replaces_step = True

    def draw(self, shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
        return draw_groups(shape, count, self.m, generator)

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        def exchange(layer: Connections) -> Tensor:
            return exchange_in_groups(layer, moment.drop_fraction, self.m)

        return network.map(exchange), memory
