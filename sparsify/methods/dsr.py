"""DSR: dynamic sparse reparameterization."""

from dataclasses import dataclass
from typing import Annotated, final

from pydantic import Field
from torch import Tensor

from sparsify.methods import Connections, Memory, Method
from sparsify.topology.connections import Moment, Network
from sparsify.topology.reallocate import grow, keep_above, lost, room, share_out


@final
@dataclass(frozen=True)
class DSR(Method):
    """Drops below one threshold for all layers and grows at random (Mostafa and Wang 2019, algorithm 1).

    Layers grow in proportion to the connections that they kept. The threshold doubles where fewer than the
    wanted share were dropped, and halves where more were; `tolerance` is the relative error that it may have.
    """

    threshold: Annotated[float, Field(gt=0)] = 1e-3  # at the first update
    tolerance: Annotated[float, Field(ge=0)] = 0.1

    updates_masks = True
    moves_between_layers = True

    def memory(self) -> Memory:
        return {"threshold": self.threshold}

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        kept = keep_above(network, memory["threshold"])
        dropped, wanted = lost(network, kept), moment.drop_fraction * network.count
        survivors = {name: float(mask.sum()) for name, mask in kept.items()}
        masks = grow(network, kept, share_out(dropped, survivors, room(kept)), self.grow_score)
        error = dropped - wanted
        factor = 1.0 if abs(error) <= self.tolerance * wanted else 0.5 if error > 0 else 2.0
        return masks, {"threshold": memory["threshold"] * factor}

    def grow_score(self, layer: Connections) -> Tensor:
        return layer.random()
