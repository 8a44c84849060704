"""Which weights existed at any time, in less memory than their mask where a layer holds its connections only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.topology.masks import Masks
from sparsify.topology.positions import Positions

_BITS = 64  # of a position in a list; a list is kept while it is shorter than one bit for each weight


@dataclass(frozen=True, eq=False)
class Explored:
    """Weights that existed at any time.

    Of a masked layer a bool tensor of the weight's shape; of one that holds its connections only their flat indices,
    int64 ascending, or where these are many the bits of a mask, uint8 in little bit order.
    """

    found: Mapping[str, Tensor]
    sizes: Mapping[str, int]  # weights that could exist, by name

    @classmethod
    def of(cls, masks: Masks, found: Mapping[str, Tensor] | None = None) -> Explored:
        """The connections of these masks; or what was found before, of a network with these masks."""
        listed = masks.positions.items()
        sizes = {name: mask.numel() for name, mask in masks.items()} | {name: held.size for name, held in listed}
        if found is None:
            found = {**masks.tensors, **{name: _listed(held.flat, held.size) for name, held in listed}}
        return cls(found, sizes)

    def including(self, masks: Masks) -> Explored:
        """With the connections of further masks."""
        found = {name: self.found[name] | mask for name, mask in masks.items()}
        found |= {name: _with(self.found[name], held) for name, held in masks.positions.items()}
        return Explored(found, self.sizes)

    def rate(self) -> float:
        """Their share of all weights: R_s of Liu et al. 2021 (ITOP, section 3)."""
        total = sum(self.sizes.values())
        return sum(map(_count, self.found.values())) / total if total else 1.0


def as_mask(found: Tensor, shape: torch.Size) -> Tensor:
    """What was found, in any form, as a bool tensor of the weight's shape."""
    if found.dtype is torch.bool:
        return found
    if found.dtype is torch.int64:
        return Positions(tuple(shape), found).mask()
    bits = np.unpackbits(found.numpy(), count=shape.numel(), bitorder="little")
    return torch.from_numpy(bits.astype(bool)).view(shape)


def as_listed(found: Tensor) -> Tensor:
    """A mask in the form that a layer with its connections only has."""
    return _listed(found.flatten().nonzero().squeeze(1), found.numel()) if found.dtype is torch.bool else found


def _listed(flat: Tensor, size: int) -> Tensor:
    if len(flat) * _BITS < size:
        return flat
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *Positions((size,), flat).packed()]))


def _with(found: Tensor, held: Positions) -> Tensor:
    if found.dtype is torch.int64:
        known, flat = found.numpy(), held.flat.numpy()
        place = np.minimum(np.searchsorted(known, flat), max(0, len(known) - 1))
        new = flat[known[place] != flat] if len(known) else flat
        both = np.sort(np.concatenate([known, new]), kind="stable")
        return _listed(torch.from_numpy(both), held.size)
    bits, start = found.clone().numpy(), 0
    for part in held.packed():
        bits[start : start + len(part)] |= part
        start += len(part)
    return torch.from_numpy(bits)


def _count(found: Tensor) -> int:
    if found.dtype is torch.int64:
        return len(found)
    return int(found.sum()) if found.dtype is torch.bool else int(_ONES[found.numpy()].sum())


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # bits set in a byte
