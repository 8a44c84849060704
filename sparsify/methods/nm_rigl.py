"""N:M RigL: RigL with N connections in every group of M inputs."""

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
    """Drops the layer's smallest magnitudes; each group regrows what it lost, where the gradient is largest.

    m: inputs of a group (consecutive, at one neuron and kernel position); N is the layer's density of it,
    rounded, and at least 1. The pattern is the N:M of Zhou et al. 2021 (section 3), the update that of Evci
    et al. 2020 (algorithm 1) with growth confined to the group; Lasby et al. 2024 relate the two.
    """

    m: Annotated[int, Field(ge=2)] = 16

    updates_masks = True
    needs_dense_gradients = True
    replaces_step = True

    def count_tolerance(self, shape: tuple[int, ...]) -> int:
        groups = torch.Size(shape).numel() // shape[1] * -(-shape[1] // self.m) if shape[1] else 0
        return groups  # one for each group: N is rounded, and a group is never empty

    def draw(self, shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
        return draw_groups(shape, count, self.m, generator)

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        def exchange(layer: Connections) -> Tensor:
            return exchange_in_groups(layer, moment.drop_fraction, self.m)

        return network.map(exchange), memory
