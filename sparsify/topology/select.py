"""Exact selection: the k best of many, and always exactly k."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_PERMUTED = 1 << 20  # numbers of which a whole permutation is drawn, 8 MB


def largest(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest scores; among equal ones the lower flat index comes first.

    score: any shape, -inf where a position is not a candidate. Returns a bool mask of that shape.
    """
    flat = score.flatten()
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = _largest_but(flat, count)
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)  # ascending flat indices
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(score.shape)


def _largest_but(flat: Tensor, count: int) -> Tensor:
    """The `count`-th largest."""
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):  # ten times as fast there
        return torch.from_numpy(np.partition(flat.detach().numpy(), len(flat) - count))[len(flat) - count]
    return torch.topk(flat, count, sorted=False).values.min()


def widen(score: Tensor) -> Tensor:
    """At least float32, so that scores in half precision compare with infinity and with each other alike."""
    return score.to(torch.promote_types(score.dtype, torch.float32))


def drop_and_grow(mask: Tensor, drop_score: Tensor, grow_score: Tensor, count: int) -> Tensor:
    """Drop the `count` connections of smallest drop score, then grow as many where the grow score is largest.

    Growth looks at every position that was not kept, so a connection just dropped may come back. The number
    of connections never changes. All tensors have the weight's shape (Evci et al. 2020, algorithm 1).
    """
    never = torch.tensor(-torch.inf, device=mask.device)
    dropped = largest(torch.where(mask, -widen(drop_score), never), count)
    kept = mask & ~dropped
    grown = largest(torch.where(kept, never, widen(grow_score)), count)
    return kept | grown


def random_mask(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Mask with exactly `count` connections, all sets of that size equally likely."""
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    mask[random_positions(mask.numel(), count, generator)] = True
    return mask.reshape(shape)


def random_positions(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `size`, all sets of that size equally likely: int64, ascending.

    Of few numbers a permutation is drawn; of many as many as are wanted, again where some came twice, so that
    memory goes with `count`.
    """
    if size <= _PERMUTED:
        return torch.randperm(size, generator=generator)[:count].sort().values
    if count > size // 2:
        absent = random_positions(size, size - count, generator)
        return torch.ones(size, dtype=torch.bool).index_fill_(0, absent, False).nonzero().squeeze(1)
    found = np.zeros(0, np.int64)
    while len(found) < count:
        more = torch.randint(size, (count - len(found) + count // 8 + 16,), generator=generator)
        drawn = np.concatenate([found, more.numpy()])
        found = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:count]  # the first that came, each once
    return torch.from_numpy(np.sort(found))
