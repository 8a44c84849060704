"""The connections of a layer as a list, for layers too large to hold a mask of every weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PART = 1 << 18  # weights that are looked at at a time; a multiple of 8


@dataclass(frozen=True, eq=False)
class Positions:
    """What a mask is, in the size of its connections."""

    shape: tuple[int, ...]  # of the weight, [out, in, kernel...]
    flat: Tensor  # int64 [nnz]: flat indices of the connections, ascending, on the CPU

    @property
    def size(self) -> int:
        """Weights that could exist."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Weights that do."""
        return len(self.flat)

    def active(self) -> Tensor:
        """Output neurons that have a connection, [out] bool."""
        found = torch.zeros(self.shape[0], dtype=torch.bool)
        found[self.flat // max(1, self.size // self.shape[0])] = True
        return found

    def mask(self) -> Tensor:
        """Bool of the weight's shape: a tensor of the dense weight's size."""
        found = torch.zeros(self.size, dtype=torch.bool)
        found[self.flat] = True
        return found.reshape(self.shape)

    def packed(self) -> Iterator[np.ndarray]:
        """The mask's bits in little bit order, uint8, in parts that follow each other."""
        flat = self.flat.numpy()
        for start in range(0, self.size, _PART):
            bits = np.zeros(min(_PART, self.size - start), bool)
            bits[flat[np.searchsorted(flat, start) : np.searchsorted(flat, start + _PART)] - start] = True
            yield np.packbits(bits, bitorder="little")
