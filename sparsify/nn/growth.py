"""Dropping and growing in a sparse layer: the dense gradient is formed block by block and never as a whole.

What is chosen is what `topology.select.drop_and_grow` chooses from dense tensors, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.nn.layer import AnyPattern, SparseLayer
from sparsify.topology.connections import Connections
from sparsify.topology.positions import Positions
from sparsify.topology.select import largest, widen

Score = Callable[[Connections], Tensor]
BLOCK = 1 << 18  # entries of the dense gradient that exist at a time: 1 MB, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Rewiring:
    """From the connections of a layer to its next ones."""

    positions: Positions
    pattern: AnyPattern
    source: Tensor  # int64 [nnz], in the new pattern's order: where the connection's value stands now, -1 if nowhere

    @property
    def lasting(self) -> int:
        """Connections that exist before and after."""
        return int((self.source >= 0).sum())

    def move(self, tensor: Tensor) -> None:
        """Bring values, or a slot of theirs, into the new order in place; new connections are 0. tensor: [nnz]."""
        here = self.source.to(tensor.device)
        tensor.copy_(tensor[here.clamp(min=0)].masked_fill_(here < 0, 0))


def exchange(layer: SparseLayer, count: int, drop_score: Score, grow_score: Score, random: torch.Generator) -> Rewiring:
    """Drop the `count` connections of smallest drop score; grow as many where the grow score is largest.

    Scores see each connection by itself: what they get is the values as a list [nnz], and the dense gradient as
    blocks of output rows [rows, entries of a row], in ascending order. The gradient is that of the layer's tape;
    without a tape the scores get none. The layer stays as it is.
    """
    flat, order = layer.positions().sort()
    with torch.no_grad():
        values = layer.weight.detach().cpu()[order]
        every = torch.ones(()).bool().expand(len(flat))
        dropped = largest(-widen(drop_score(Connections(every, values, None, random))), count)
        kept = flat[~dropped]
        grown = _largest_of(_scores(layer, kept, grow_score, random), count)
    return _rewiring(layer, flat, order, torch.cat([kept, grown]).sort().values)


def _scores(layer: SparseLayer, kept: Tensor, score: Score, random: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """The grow scores, -inf where a connection was kept: flat index of a block's first, and the block as a list."""
    height, *rest = layer.pattern.shape
    width = math.prod(rest)
    rows = max(1, BLOCK // max(1, width))
    absent, nothing = torch.zeros(()).bool(), torch.zeros(())
    for start in range(0, height, rows):
        stop = min(height, start + rows)
        shape = (stop - start, width)
        gradient = layer.dense_gradient(start, stop) if layer.tape else None
        found = widen(score(Connections(absent.expand(shape), nothing.expand(shape), gradient, random))).flatten()
        first, last = torch.searchsorted(kept, torch.tensor([start * width, stop * width])).tolist()
        found[kept[first:last] - start * width] = -torch.inf
        yield start * width, found


def _largest_of(blocks: Iterator[tuple[int, Tensor]], count: int) -> Tensor:
    """Flat indices of the `count` largest scores, of equal ones the lowest: int64 [count], in no order."""
    scores, places, least = torch.zeros(0), torch.zeros(0, dtype=torch.int64), -torch.inf
    for start, found in blocks:
        if not count:
            continue  # random scores are drawn all the same, so that layers behind see the same numbers
        # One that equals the least of `count` found so far comes later, so it is not wanted.
        better = (found > least).nonzero().squeeze(1)
        scores, places = torch.cat([scores, found[better]]), torch.cat([places, better + start])
        if len(scores) > 2 * count:
            scores, places = _best(scores, places, count)
            least = float(scores.min())
    return _best(scores, places, count)[1]


def _best(scores: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest; places ascend, so of equal scores the lowest place is the first."""
    best = largest(scores, min(count, len(scores)))
    return scores[best], places[best]


def _rewiring(layer: SparseLayer, flat: Tensor, order: Tensor, chosen: Tensor) -> Rewiring:
    """flat: positions now, ascending, and `order`, where their values stand; chosen: positions next, ascending."""
    pattern, inner = layer.arrange(chosen.numpy())
    wanted = chosen[torch.from_numpy(inner)]
    place = torch.searchsorted(flat, wanted).clamp(max=max(0, len(flat) - 1))
    there = flat[place] == wanted if len(flat) else torch.zeros(0, dtype=torch.bool)
    source = torch.where(there, order[place] if len(flat) else place, -1)
    return Rewiring(Positions(layer.pattern.shape, chosen), pattern, source)
