"""Dropping and growing in a sparse layer: the dense gradient is formed block by block and never as a whole.

What is chosen is what `topology.select.drop_and_grow` chooses from dense tensors, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

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


@torch.no_grad()
def gather(layer: SparseLayer, total: Tensor | None) -> Tensor:
    """The dense gradient of the layer's tape plus `total`, which is spent, in the weight's shape."""
    shape = layer.pattern.shape
    found = (torch.zeros(shape) if total is None else total).reshape(shape[0], -1)
    for start, stop in _blocks(range(shape[0]), found.shape[1]):
        found[start:stop] += layer.dense_gradient(start, stop)
    return found.view(shape)


def exchange(
    layer: SparseLayer, fraction: float, drop_score: Score, grow_score: Score, random: torch.Generator, parts: int = 1,
    gathered: Tensor | None = None,
) -> Rewiring:  # fmt: skip
    """Drop floor(fraction nnz) connections of smallest drop score; grow as many where the grow score is largest.

    Scores see each connection by itself: what they get is the values as a list [nnz], and the dense gradient as
    blocks of output rows [rows, entries of a row], in ascending order. The gradient is that of the layer's tape;
    without a tape the scores get none. parts: matrices below each other in the weight, each of which keeps its count.
    gathered: what `gather` made of earlier batches, which is added. The layer stays as it is.
    """
    gathered = gathered.flatten(1) if gathered is not None else None
    flat, order = layer.ascending()
    height = layer.pattern.shape[0] // parts
    edges = np.searchsorted(flat, np.arange(parts + 1) * height * math.prod(layer.pattern.shape[1:])).tolist()
    found = []
    with torch.no_grad():
        values = layer.weight.detach().cpu()[torch.from_numpy(order)]
        for part, (start, stop) in enumerate(pairwise(edges)):
            rows, count = range(part * height, (part + 1) * height), int(fraction * (stop - start))
            own, stood = flat[start:stop], order[start:stop]
            every = torch.ones(()).bool().expand(stop - start)
            seen = Connections(every, values[start:stop], None, random)
            dropped = largest(-widen(drop_score(seen)), count).numpy()
            gone, stays = np.flatnonzero(dropped), np.flatnonzero(~dropped)
            scores = _scores(layer, rows, torch.from_numpy(own[stays]), grow_score, random, gathered)
            grown = _largest_of(scores, count)
            both = np.concatenate([own[stays], grown])
            place = np.argsort(both, kind="stable")  # two ascending runs, which it merges
            source = np.concatenate([stood[stays], _beside(grown, own[gone], stood[gone])])
            found.append((both[place], source[place]))
    chosen, stood = (np.concatenate(each) for each in zip(*found, strict=True))
    pattern, inner = layer.arrange(chosen)
    positions = Positions(layer.pattern.shape, torch.from_numpy(chosen))
    return Rewiring(positions, pattern, torch.from_numpy(stood[inner]))


def _beside(wanted: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value beside each `wanted` in `known`, -1 where it is not there. Both ascending, each once."""
    if not len(known):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[place] == wanted, values[place], -1)


def _scores(
    layer: SparseLayer, rows: range, kept: Tensor, score: Score, random: torch.Generator, gathered: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    """The rows' grow scores, -inf where a connection was kept: flat index of a block's first, the block as a list."""
    width = math.prod(layer.pattern.shape[1:])
    absent, nothing = torch.zeros(()).bool(), torch.zeros(())
    for start, stop in _blocks(rows, width):
        shape = (stop - start, width)
        gradient = layer.dense_gradient(start, stop) if layer.tape else None
        if gradient is not None and gathered is not None:
            gradient = gradient + gathered[start:stop]
        found = widen(score(Connections(absent.expand(shape), nothing.expand(shape), gradient, random))).flatten()
        first, last = torch.searchsorted(kept, torch.tensor([start * width, stop * width])).tolist()
        found[kept[first:last] - start * width] = -torch.inf
        yield start * width, found


def _blocks(rows: range, width: int) -> Iterator[tuple[int, int]]:
    """Rows from one to another, as many as a block of the dense gradient has."""
    height = max(1, BLOCK // max(1, width))
    for start in rows[::height]:
        yield start, min(rows.stop, start + height)


def _largest_of(blocks: Iterator[tuple[int, Tensor]], count: int) -> np.ndarray:
    """Flat indices of the `count` largest scores, of equal ones the lowest: int64 [count], ascending.

    What is kept meanwhile lies in two arrays: small ones beside each block would take the places that blocks leave, and
    the process would grow by a byte for each weight.
    """
    scores, places, held, least = np.zeros(0, np.float32), np.zeros(0, np.int64), 0, -np.inf
    for start, found in blocks:
        if not count:
            continue  # random scores are drawn all the same, so that layers behind see the same numbers
        if not len(places):  # the first block is the largest
            room = 2 * count + found.numel()
            scores, places = np.zeros(room, found.numpy().dtype), np.zeros(room, np.int64)
        # One that equals the least of `count` found so far comes later, so it is not wanted.
        better = np.flatnonzero(found.numpy() > least)
        end = held + len(better)
        scores[held:end], places[held:end] = found.numpy()[better], better + start
        held = end
        if held > 2 * count:
            best = _best(scores[:held], count)
            scores[:count], places[:count] = scores[best], places[best]
            held, least = count, scores[:count].min()
    return places[_best(scores[:held], count)]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` largest stand, ascending; of equal scores the first."""
    return np.flatnonzero(largest(torch.from_numpy(scores), min(count, len(scores))).numpy())
