"""SRigL: RigL with a constant fan-in, which leaves out neurons that are not worth theirs."""

from dataclasses import dataclass
from typing import Annotated, final

import torch
from pydantic import Field
from torch import Tensor

from sparsify.methods import Connections, Memory, Method
from sparsify.topology.connections import Moment, Network
from sparsify.topology.patterns import draw_fan_in, exchange_fan_in


@final
@dataclass(frozen=True)
class SRigL(Method):
    """Every active neuron of a layer has the same number of connections (Lasby et al. 2024, section 3).

    A neuron is ablated where fewer than `salient` of its fan-in are salient: among the layer's largest
    magnitudes that are kept, or the largest gradients that would be grown. Its connections go to the others.
    """

    salient: Annotated[float, Field(ge=0, le=1)] = 0.3  # the paper's choice for convolutional networks

    updates_masks = True
    needs_dense_gradients = True
    replaces_step = True

    def count_tolerance(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def draw(self, shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
        return draw_fan_in(shape, count, generator)

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        def exchange(layer: Connections) -> Tensor:
            return exchange_fan_in(layer, moment.drop_fraction, self.salient)

        return network.map(exchange), memory
