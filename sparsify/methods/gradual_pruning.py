"""Gradual magnitude pruning: from dense to sparse."""

from dataclasses import dataclass
from typing import Annotated, final

from pydantic import Field
from torch import Tensor

from sparsify.methods import Memory, Method
from sparsify.topology.connections import Connections, Moment, Network
from sparsify.topology.reallocate import keep_largest
from sparsify.topology.schedules import cubic_count


@final
@dataclass(frozen=True)
class GradualPruning(Method):
    """Starts dense; each layer loses its smallest magnitudes on a cubic schedule (Zhu and Gupta 2018, section 3).

    begin: share of the time until the last update that passes before pruning starts.
    """

    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0

    updates_masks = True

    def initial_sparsity(self, sparsity: float) -> float:
        return 0.0

    def planned_count(self, initial: int, final: int, progress: float) -> int:
        return cubic_count(initial, final, max(0.0, progress - self.begin) / (1 - self.begin))

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        def planned(layer: Connections) -> int:
            return self.planned_count(layer.initial, layer.final, moment.progress)

        return keep_largest(network, network.map(planned), self.drop_score), memory
