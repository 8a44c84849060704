"""What a layer costs, with and without its zeros. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution's or linear layer's weight, and how often one sample uses it."""

    name: str  # of the parameter, "blocks.0.conv1.weight"
    shape: tuple[int, ...]  # [out, in / groups, kernel...]
    positions: int  # output positions for a sample: how often each weight is multiplied
    sparse: bool = True  # takes part in the distribution; depthwise convolutions do not (Evci et al. 2020, 4.1.2)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def flops(self, nonzeros: int) -> int:
        """2 for each multiply-add of a sample and 1 for each output's bias.

        Batch norm is not counted: at inference it is folded into weight and bias, which is why every layer
        counts as having one. This is the rule that gives the published figures.
        """
        return (2 * nonzeros + self.shape[0]) * self.positions


def inference_flops(layers: Iterable[Layer], nonzeros: Mapping[str, int]) -> int:
    """Floating-point operations of one sample's forward pass; layers without a count are dense."""
    return sum(layer.flops(nonzeros.get(layer.name, layer.size)) for layer in layers)


def sparse_bytes(layers: Iterable[Layer], nonzeros: Mapping[str, int]) -> int:
    """Size of the weights: 4 bytes a non-zero, 1 bit a weight for sparse layers' positions, 4 bytes a bias."""
    total = 0
    for layer in layers:
        count = nonzeros.get(layer.name, layer.size)
        positions = math.ceil(layer.size / 8) if count < layer.size else 0
        total += 4 * count + positions + 4 * layer.shape[0]
    return total
