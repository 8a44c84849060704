"""The masks of a network: one value, replaced as a whole at every update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.topology.densities import Shapes, allocate, count_nonzeros
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
        return {name: int(mask.sum()) for name, mask in self.items()}

    def sparsity(self) -> float:
        """Share of the sparse-able weights that do not exist."""
        total = sum(mask.numel() for mask in self.values())
        return 1 - sum(self.nonzeros().values()) / total if total else 0.0

    def digest(self) -> str:
        """The same for the same topology, in a run or in a file; see `topology.digest`."""
        return mask_digest({name: mask.cpu().numpy() for name, mask in self.items()})

    def to(self, device: torch.device) -> Masks:
        return Masks({name: mask.to(device) for name, mask in self.items()})


def random_masks(shapes: Shapes, distribution: str, sparsity: float, generator: torch.Generator) -> Masks:
    """Random masks with exactly the counts that the distribution allocates."""
    shares = allocate(distribution, shapes, sparsity)
    return Masks(
        {name: random_mask(shape, count_nonzeros(shape, shares[name]), generator) for name, shape in shapes.items()}
    )
