"""Exact selection: the k best of many, and always exactly k."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(score: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest scores; among equal ones the lower flat index comes first.

    score: any shape, -inf where a position is not a candidate. Returns a bool mask of that shape.
    """
    flat = score.flatten()
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = torch.topk(flat, count, sorted=False).values.min()
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)  # ascending flat indices
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(score.shape)


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
    mask[torch.randperm(mask.numel(), generator=generator)[:count]] = True
    return mask.reshape(shape)
