"""Float32 arrays that are not there as such: numpy.asarray makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np


@dataclass(frozen=True, eq=False)
class Lazy:
    """What such an array is known by."""

    shape: tuple[int, ...]

    dtype = np.dtype(np.float32)

    @property
    def size(self) -> int:
        """Elements, the zeros too."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> Self:
        """The same elements in another shape, one of whose sizes may be -1."""
        rest = self.size // -math.prod(shape) if -1 in shape else 0
        return replace(self, shape=tuple(rest if size == -1 else size for size in shape))
