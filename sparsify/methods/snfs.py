"""SNFS: sparse networks from scratch, by sparse momentum."""

from dataclasses import dataclass
from typing import Annotated, final

from pydantic import Field
from torch import Tensor

from sparsify.methods import Connections, Memory, Method
from sparsify.topology.connections import Moment, Network
from sparsify.topology.reallocate import drop_smallest, grow, lost, room, share_out


@final
@dataclass(frozen=True)
class SNFS(Method):
    """Drops small magnitudes, grows by the momentum of the dense gradient (Dettmers and Zettlemoyer 2019, alg. 1).

    What all layers dropped is shared out in proportion to the mean momentum of each layer's connections.
    """

    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9

    updates_masks = True
    needs_dense_gradients = True
    moves_between_layers = True

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        kept = drop_smallest(network, moment.drop_fraction)
        counts = share_out(lost(network, kept), network.map(self.layer_share), room(kept))
        return grow(network, kept, counts, self.grow_score), memory

    def layer_share(self, layer: Connections) -> float:
        """Mean momentum magnitude of the existing connections."""
        momentum = self.grow_score(layer)[layer.mask]
        return float(momentum.double().mean()) if len(momentum) else 0.0

    def grow_score(self, layer: Connections) -> Tensor:
        assert layer.momentum is not None
        return layer.momentum.abs()
