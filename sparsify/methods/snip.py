"""SNIP: single-shot network pruning."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from sparsify.methods import Connections, Memory, Method
from sparsify.topology.connections import Moment, Network
from sparsify.topology.reallocate import keep_largest, keep_largest_overall


@final
@dataclass(frozen=True)
class SNIP(Method):
    """Keeps the connections whose removal would change the first batch's loss most, |w g| (Lee et al. 2019).

    scope: "layer" keeps what the distribution allocates to each layer, as Evci et al. 2020 compare it;
    "network" keeps the best of the whole network, as in the paper (section 4.2), and may empty a layer.
    """

    scope: Literal["layer", "network"] = "layer"

    needs_dense_gradients = True
    starts_with_update = True

    @property
    def moves_between_layers(self) -> bool:  # type: ignore[override]
        return self.scope == "network"

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        counts = network.map(lambda layer: layer.final)
        if self.scope == "network":
            return keep_largest_overall(network, sum(counts.values()), self.drop_score), memory
        return keep_largest(network, counts, self.drop_score), memory

    def drop_score(self, layer: Connections) -> Tensor:
        assert layer.gradient is not None
        return (layer.weight * layer.gradient).abs()
