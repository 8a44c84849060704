"""The masks of a network: one value, replaced as a whole at every update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sparsify.topology.costs import Layer
from sparsify.topology.densities import allocate_counts
from sparsify.topology.digest import MaskHasher
from sparsify.topology.matrices import join, outputs_first
from sparsify.topology.positions import Positions
from sparsify.topology.select import random_mask


@dataclass(frozen=True, eq=False)
class Masks(Mapping[str, Tensor]):
    """Bool tensors by the weight's name, in the weight's shape: True where a connection exists.

    Layers that hold their non-zeros only have `positions` in place of a tensor; they are not among the mapping's
    items, and count in everything that is asked about the network as a whole.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Layer] = field(default_factory=dict)  # for those whose outputs are not the first dimension
    positions: Mapping[str, Positions] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def nonzeros(self) -> dict[str, int]:
        """Connections of each layer."""
        return dict(self._nonzeros)

    @cached_property
    def _nonzeros(self) -> dict[str, int]:  # asked for at every step, and masks never change in place
        listed = {name: layer.count for name, layer in self.positions.items()}
        return {name: int(mask.sum()) for name, mask in self.items()} | listed

    def partial(self) -> list[str]:
        """Names of the weights that have zeros."""
        return [name for name, mask in self.items() if self._nonzeros[name] < mask.numel()]

    def factors(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What to multiply the partial weights by: 1 or 0, in each weight's type and memory format.

        Products of tensors that are alike are fused. Made once: a model does not change its type in training.
        """
        if not self._factors:
            self._factors.update({name: torch.empty_like(weights[name]).copy_(self[name]) for name in self.partial()})
        return self._factors

    @cached_property
    def _factors(self) -> dict[str, Tensor]:
        return {}

    def active_neurons(self) -> dict[str, Tensor]:
        """Output neurons or channels that have a connection: [out] bool by the weight's name."""
        matrices = {n: outputs_first(self.layers[n], mask) if n in self.layers else mask for n, mask in self.items()}
        listed = {name: layer.active() for name, layer in self.positions.items()}
        return {name: matrix.flatten(1).any(1) for name, matrix in matrices.items()} | listed

    def sparsity(self) -> float:
        """Share of the sparse-able weights that do not exist."""
        total = sum(mask.numel() for mask in self.values()) + sum(layer.size for layer in self.positions.values())
        return 1 - sum(self.nonzeros().values()) / total if total else 0.0

    def digest(self) -> str:
        """The same for the same topology, in a run or in a file; see `topology.digest`."""
        hasher = MaskHasher()
        for name in sorted([*self, *self.positions]):
            if name in self.positions:
                hasher.add(name, self.positions[name].shape, self.positions[name].packed())
            else:
                mask = self[name].cpu().numpy()
                hasher.add(name, mask.shape, np.packbits(mask.ravel(), bitorder="little"))
        return hasher.hexdigest()

    def to(self, device: torch.device) -> Masks:
        return replace(self, tensors={name: mask.to(device) for name, mask in self.items()})


Draw = Callable[[tuple[int, ...], int, torch.Generator], Tensor]  # shape, connections, generator -> mask


def random_masks(
    layers: Sequence[Layer], distribution: str, sparsity: float, generator: torch.Generator, draw: Draw = random_mask
) -> Masks:
    """Random masks of the sparse layers, with the counts that the distribution allocates to their matrices.

    Counts are exact, unless `draw` has a pattern.
    """
    counts = allocate_counts(distribution, layers, sparsity)
    sparse = [layer for layer in layers if layer.sparse]
    drawn = {name: draw(layer.matrix_shape, counts[name], generator) for layer in sparse for name in layer.matrices}
    turned = {layer.name: layer for layer in sparse if layer.axis}
    return Masks({layer.name: join(layer, drawn) for layer in sparse}, turned)
