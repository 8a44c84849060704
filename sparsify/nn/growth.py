"""Dropping and growing in a sparse layer: the dense gradient is formed block by block and never as a whole.

What is chosen is what `topology.select.drop_and_grow` chooses from dense tensors, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
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
    flat, order = layer.ascending()
    with torch.no_grad():
        values = layer.weight.detach().cpu()[torch.from_numpy(order)]
        every = torch.ones(()).bool().expand(len(flat))
        dropped = largest(-widen(drop_score(Connections(every, values, None, random))), count).numpy()
        gone, stays = np.flatnonzero(dropped), np.flatnonzero(~dropped)
        kept = flat[stays]
        grown = _largest_of(_scores(layer, torch.from_numpy(kept), grow_score, random), count)
    stood = np.concatenate([order[stays], _beside(grown, flat[gone], order[gone])])
    both = np.concatenate([kept, grown])
    place = np.argsort(both, kind="stable")  # two ascending runs, which it merges
    chosen = both[place]
    pattern, inner = layer.arrange(chosen)
    source = torch.from_numpy(stood[place[inner]])
    return Rewiring(Positions(layer.pattern.shape, torch.from_numpy(chosen)), pattern, source)


def _beside(wanted: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value beside each `wanted` in `known`, -1 where it is not there. Both ascending, each once."""
    if not len(known):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, values[place], -1)


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


def _largest_of(blocks: Iterator[tuple[int, Tensor]], count: int) -> np.ndarray:
    """Flat indices of the `count` largest scores, of equal ones the lowest: int64 [count], ascending."""
    scores, places, held, least = [torch.zeros(0)], [np.zeros(0, np.int64)], 0, -torch.inf
    for start, found in blocks:
        if not count:
            continue  # random scores are drawn all the same, so that layers behind see the same numbers
        # One that equals the least of `count` found so far comes later, so it is not wanted.
        better = np.flatnonzero((found > least).numpy())
        scores.append(found[torch.from_numpy(better)])
        places.append(better + start)
        held += len(better)
        if held > 2 * count:
            score, place = _best(scores, places, count)
            scores, places, held, least = [score], [place], count, float(score.min())
    return _best(scores, places, count)[1]


def _best(scores: Sequence[Tensor], places: Sequence[np.ndarray], count: int) -> tuple[Tensor, np.ndarray]:
    """The `count` largest; places ascend, so of equal scores the lowest place is the first."""
    score = torch.cat(list(scores))
    best = np.flatnonzero(largest(score, min(count, len(score))).numpy())
    return score[torch.from_numpy(best)], np.concatenate(places)[best]
