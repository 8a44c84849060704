"""Dropping and growing over a whole network, where connections may move from one layer to another.

Masks are dictionaries of bool tensors in the weights' shapes, by the weight's name, like `Network`'s layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsify.topology.connections import Connections, Network
from sparsify.topology.select import drop_and_grow, largest, widen

Score = Callable[[Connections], Tensor]
Layers = Mapping[str, Tensor]


def exchange(network: Network, fraction: float, drop_score: Score, grow_score: Score) -> dict[str, Tensor]:
    """Replace floor(fraction nnz) connections in each layer; no layer's count changes (Evci et al. 2020)."""

    def replace(layer: Connections) -> Tensor:
        return drop_and_grow(layer.mask, drop_score(layer), grow_score(layer), int(fraction * layer.count))

    return network.map(replace)


def magnitude(layer: Connections) -> Tensor:
    """Size of each weight."""
    return layer.weight.abs()


def keep_largest(network: Network, counts: Mapping[str, int], score: Score = magnitude) -> dict[str, Tensor]:
    """The `counts[name]` existing connections of largest score in each layer; all, where there are fewer."""
    return {name: largest(_existing(layer, score), min(counts[name], layer.count)) for name, layer in network.items()}


def drop_smallest(network: Network, fraction: float, score: Score = magnitude) -> dict[str, Tensor]:
    """The existing connections without the floor(fraction nnz) of smallest score in each layer."""
    return keep_largest(network, network.map(lambda layer: layer.count - int(fraction * layer.count)), score)


def keep_largest_overall(network: Network, count: int, score: Score = magnitude) -> dict[str, Tensor]:
    """The `count` existing connections of largest score in the whole network, whatever their layers."""
    flat = torch.cat([_existing(layer, score).flatten() for layer in network.values()])
    chosen = largest(flat, min(count, network.count))
    parts = chosen.split([layer.mask.numel() for layer in network.values()])
    return {name: part.reshape(network[name].mask.shape) for name, part in zip(network, parts, strict=True)}


def keep_above(network: Network, threshold: float) -> dict[str, Tensor]:
    """The existing connections whose magnitude is at least the threshold."""
    return network.map(lambda layer: layer.mask & (layer.weight.abs() >= threshold))


def grow(network: Network, kept: Layers, counts: Mapping[str, int], score: Score) -> dict[str, Tensor]:
    """Add to each layer its count of connections, where the score is largest among the positions not kept."""
    never = -math.inf
    return {
        name: kept[name] | largest(widen(score(layer)).masked_fill(kept[name], never), counts[name])
        for name, layer in network.items()
    }


def lost(network: Network, kept: Layers) -> int:
    """Connections of the network that are not among the kept."""
    return sum(layer.count - int(kept[name].sum()) for name, layer in network.items())


def room(kept: Layers) -> dict[str, int]:
    """Positions of each layer that hold no connection."""
    return {name: int((~mask).sum()) for name, mask in kept.items()}


def share_out(total: int, shares: Mapping[str, float], room: Mapping[str, int]) -> dict[str, int]:
    """Split `total` over layers in proportion to `shares`, exactly, none above its `room`.

    What a full layer cannot take goes to the others in proportion. Rounding is by largest remainder. Where
    every share is 0 or not finite, the room takes its place. total: at most the sum of the room.
    """
    if total > sum(room.values()):
        raise ValueError(f"{total} connections do not fit into {sum(room.values())} positions")
    result = dict.fromkeys(room, 0)
    while (rest := total - sum(result.values())) > 0:
        open_ = [name for name in room if result[name] < room[name]]
        weights = {name: shares[name] for name in open_ if 0 < shares[name] < math.inf}
        weights = weights or {name: float(room[name] - result[name]) for name in open_}
        parts = _round_to(rest, weights)
        for name, part in parts.items():
            result[name] = min(room[name], result[name] + part)
    return result


def _round_to(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the weights whose sum is `total`; the first layer wins a tie."""
    whole = math.fsum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    result = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: result[name] - exact[name])
    for name in by_remainder[: total - sum(result.values())]:
        result[name] += 1
    return result


def _existing(layer: Connections, score: Score) -> Tensor:
    return widen(score(layer)).masked_fill(~layer.mask, -math.inf)
