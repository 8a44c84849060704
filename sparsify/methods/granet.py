"""GraNet: gradual pruning with regeneration."""

from dataclasses import dataclass
from typing import Annotated, final

from pydantic import Field
from torch import Tensor

from sparsify.methods import Memory, Method, gradient_magnitude
from sparsify.topology.connections import Moment, Network
from sparsify.topology.reallocate import exchange, keep_largest_overall
from sparsify.topology.schedules import cubic_count


@final
@dataclass(frozen=True)
class GraNet(Method):
    """Prunes on a cubic schedule and exchanges weak for promising connections (Liu et al. 2021, section 4).

    At each update the smallest magnitudes of the whole network go; then each layer drops a share of its
    smallest ones and grows as many where the gradient is largest, as RigL does. start: sparsity before
    training (0 is the paper's dense-to-sparse, 0.5 its sparse-to-sparse setting).
    """

    start: Annotated[float, Field(ge=0, lt=1)] = 0.5

    updates_masks = True
    needs_dense_gradients = True
    moves_between_layers = True

    def initial_sparsity(self, sparsity: float) -> float:
        return min(self.start, sparsity)

    def planned_count(self, initial: int, final: int, progress: float) -> int:
        return cubic_count(initial, final, progress)

    def update(self, network: Network, moment: Moment, memory: Memory) -> tuple[dict[str, Tensor], Memory]:
        layers = network.values()
        initial, final = sum(layer.initial for layer in layers), sum(layer.final for layer in layers)
        kept = keep_largest_overall(network, self.planned_count(initial, final, moment.progress))
        pruned = network.with_masks(kept)
        return exchange(pruned, moment.drop_fraction, self.drop_score, gradient_magnitude), memory
