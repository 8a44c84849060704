"""A network as a method sees it: its layers' connections, and when in training it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Connections:
    """What a method may look at in one layer. All tensors have the weight's shape [out, in, kernel...]."""

    mask: Tensor  # bool
    weight: Tensor
    gradient: Tensor | None  # of the loss over the whole batch, dense; where the method needs it
    generator: torch.Generator  # for random choices; on the CPU, the same on every rank
    momentum: Tensor | None = None  # running mean of dense gradients; where the method keeps one
    initial: int = 0  # connections that the layer started with
    final: int = 0  # connections that the distribution allocates to the layer at the target sparsity

    @property
    def count(self) -> int:
        """Connections that exist."""
        return int(self.mask.sum())

    def random(self) -> Tensor:
        """Uniform scores in [0, 1) on the weight's device; the same on every device and rank."""
        return torch.rand(self.weight.shape, generator=self.generator).to(self.weight.device)


@dataclass(frozen=True)
class Moment:
    """When an update happens."""

    drop_fraction: float  # f(t): share of the connections to replace
    progress: float  # from 0 before the first update to 1 at the last


@dataclass(frozen=True, eq=False)
class Network(Mapping[str, Connections]):
    """The layers that can be sparse, by the weight's name."""

    layers: Mapping[str, Connections]

    def __getitem__(self, name: str) -> Connections:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def map(self, function: Callable[[Connections], T]) -> dict[str, T]:
        """The function's value for each layer, by name."""
        return {name: function(layer) for name, layer in self.items()}

    @property
    def count(self) -> int:
        """Connections that exist in all layers together."""
        return sum(layer.count for layer in self.values())

    def with_masks(self, masks: Mapping[str, Tensor]) -> Network:
        """The same layers with other connections."""
        return Network({name: replace(layer, mask=masks[name]) for name, layer in self.items()})
