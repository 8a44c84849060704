"""The masks of a network: one value, replaced as a whole at every update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparsify.topology.densities import Shapes, allocate_counts
from sparsify.topology.digest import mask_digest
from sparsify.topology.select import random_mask


@dataclass(frozen=True, eq=False)
class Masks(Mapping[str, Tensor]):
    """Bool tensors by the weight's name, in the weight's shape: True where a connection exists."""

    tensors: Mapping[str, Tensor]

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
        return {name: int(mask.sum()) for name, mask in self.items()}

    def active_neurons(self) -> dict[str, Tensor]:
        """Output neurons or channels that have a connection: [out] bool by the weight's name."""
        return {name: mask.flatten(1).any(1) for name, mask in self.items()}

    def __or__(self, other: Masks) -> Masks:
        """Connections that exist in either."""
        return Masks({name: mask | other[name] for name, mask in self.items()})

    def sparsity(self) -> float:
        """Share of the sparse-able weights that do not exist."""
        total = sum(mask.numel() for mask in self.values())
        return 1 - sum(self.nonzeros().values()) / total if total else 0.0

    def digest(self) -> str:
        """The same for the same topology, in a run or in a file; see `topology.digest`."""
        return mask_digest({name: mask.cpu().numpy() for name, mask in self.items()})

    def to(self, device: torch.device) -> Masks:
        return Masks({name: mask.to(device) for name, mask in self.items()})


Draw = Callable[[tuple[int, ...], int, torch.Generator], Tensor]  # shape, connections, generator -> mask


def random_masks(
    shapes: Shapes, distribution: str, sparsity: float, generator: torch.Generator, draw: Draw = random_mask
) -> Masks:
    """Random masks with the counts that the distribution allocates; exactly these, unless `draw` has a pattern."""
    counts = allocate_counts(distribution, shapes, sparsity)
    return Masks({name: draw(tuple(shape), counts[name], generator) for name, shape in shapes.items()})
