"""The matrices in a weight: methods see each as [out, in, kernel...], wherever the weight keeps it.

A gate of a GRU, or the queries of an attention, is a matrix of its own with its own density, drop and growth,
although one parameter holds several of them. A transposed convolution keeps its outputs in the second dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsify.topology.costs import Layer


def split(layer: Layer, tensor: Tensor) -> dict[str, Tensor]:
    """The parts [out, in, kernel...] of a tensor of the weight's shape, by name; views where that is possible."""
    return dict(zip(layer.matrices, outputs_first(layer, tensor).chunk(layer.parts), strict=True))


def join(layer: Layer, parts: Mapping[str, Tensor]) -> Tensor:
    """The inverse of `split`: a tensor of the weight's shape."""
    found = [parts[name] for name in layer.matrices]
    tensor = torch.cat(found) if len(found) > 1 else found[0]
    return outputs_first(layer, tensor).contiguous()


def outputs_first(layer: Layer, tensor: Tensor) -> Tensor:
    """A tensor of the weight's shape as [out, in / groups, kernel...]; where outputs come second, also its inverse."""
    if layer.axis == 0:
        return tensor
    grouped = tensor.unflatten(0, (layer.groups, -1))  # [groups, in / groups, out / groups, ...]
    return grouped.transpose(1, 2).flatten(0, 1)


def weight_counts(layers: Iterable[Layer], counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by matrix as counts by weight, for the layers that have any."""
    return {layer.name: sum(counts[name] for name in layer.matrices) for layer in layers if layer.matrices[0] in counts}
