"""What a layer costs, with and without its zeros. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Layer:
    """A weight that inputs are multiplied by, or an embedding, and how often one sample uses it."""

    name: str  # of the parameter, "blocks.0.conv1.weight"
    shape: tuple[int, ...]  # [out, in / groups, kernel...], or [in, out / groups, kernel...] where axis is 1
    positions: int  # how often a sample multiplies by each weight; 0 for embeddings, and where unknown
    sparse: bool = True  # has a mask; depthwise convolutions and embeddings have none unless asked for
    axis: int = 0  # dimension of the outputs: 1 in transposed convolutions and in x @ weight
    groups: int = 1  # of a convolution: its weight is so many matrices, side by side
    parts: int = 1  # matrices along the outputs with connections of their own: gates; queries, keys and values
    own: float | None = None  # sparsity of its own; None where the distribution decides
    inside: bool = False  # whether the others make up for a sparsity of its own, so that the total stays

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def outputs(self) -> int:
        """Neurons or channels that the layer computes."""
        return self.shape[0] if self.axis == 0 else self.shape[1] * self.groups

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """[out, in / groups, kernel...] of each of the parts."""
        first, second, *kernel = self.shape
        inputs = second if self.axis == 0 else first // self.groups
        return (self.outputs // self.parts, inputs, *kernel)

    @property
    def matrices(self) -> list[str]:
        """A name for each of the parts: the weight's own where there is one, "weight[0]" and so on where not."""
        return [self.name] if self.parts == 1 else [f"{self.name}[{part}]" for part in range(self.parts)]

    def flops(self, nonzeros: int) -> int:
        """2 for each multiply-add of a sample and 1 for each output's bias.

        Batch norm is not counted: at inference it is folded into weight and bias, which is why every layer
        counts as having one. This is the rule that gives the published figures.
        """
        return (2 * nonzeros + self.outputs) * self.positions


def plain_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """Sparse layers of which nothing is known but the shapes of their weights, [out, in, kernel...]."""
    return [Layer(name, tuple(shape), 0) for name, shape in shapes.items()]


def inference_flops(layers: Iterable[Layer], nonzeros: Mapping[str, int]) -> int:
    """Floating-point operations of one sample's forward pass; layers without a count are dense."""
    return sum(layer.flops(nonzeros.get(layer.name, layer.size)) for layer in layers)


def sparse_bytes(layers: Iterable[Layer], nonzeros: Mapping[str, int]) -> int:
    """Size of the weights: 4 bytes a non-zero, 1 bit a weight for sparse layers' positions, 4 bytes a bias."""
    total = 0
    for layer in layers:
        count = nonzeros.get(layer.name, layer.size)
        positions = math.ceil(layer.size / 8) if count < layer.size else 0
        total += 4 * (count + layer.outputs) + positions
    return total


def step_flops(sparse: N, dense: N) -> N:
    """FLOPs of one sample in a training step: 2 f_S + f_D, or 3 f_S with f_S in the place of f_D.

    Forward and the gradient of the activations cost f_S each. The gradient of the weights costs f_D where it
    is wanted for every weight, and f_S where it is wanted for those that exist (Evci et al. 2020, appendix H).
    """
    return 2 * sparse + dense


def mean_step_flops(sparse: float, dense: float, delta_t: int, at_updates: int, at_every_step: bool) -> float:
    """FLOPs of one sample in a training step, on average over training.

    sparse: f_S, averaged over training where it changes. at_updates: of so many batches dense gradients are wanted
    every delta_t steps; one gives (3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1), as for RigL. at_every_step: they are wanted
    always, which gives 2 f_S + f_D, as for SNFS; otherwise 3 f_S (Evci et al. 2020, appendix H).
    """
    if at_every_step:
        return step_flops(sparse, dense)
    plain = step_flops(sparse, sparse)
    return plain + at_updates * (step_flops(sparse, dense) - plain) / (delta_t + 1)


def format_bytes(layers: Iterable[Layer], nonzeros: Mapping[str, int]) -> dict[str, int]:
    """Size of weights and biases in float32 by the way in which they can be stored.

    dense: every weight. bitmask: non-zeros and 1 bit a weight (the paper's measure). csr: non-zeros, their
    columns in 16 bits where these suffice and 32 otherwise, and a row pointer of 32 bits. The sparse ways
    store a layer densely where that is smaller.
    """
    layers = list(layers)
    dense = {layer.name: 4 * (layer.size + layer.outputs) for layer in layers}
    return {
        "dense": sum(dense.values()),
        "bitmask": sparse_bytes(layers, nonzeros),
        "csr": sum(min(dense[layer.name], _csr_bytes(layer, nonzeros)) for layer in layers),
    }


def _csr_bytes(layer: Layer, nonzeros: Mapping[str, int]) -> int:
    rows, columns = layer.outputs, layer.size // max(1, layer.outputs)
    index = 2 if columns <= 1 << 16 else 4
    return nonzeros.get(layer.name, layer.size) * (4 + index) + 4 * (rows + 1) + 4 * rows
