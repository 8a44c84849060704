"""Where the non-zeros of a sparse convolution are, and where its taps fall."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """How the taps of a convolution walk over an image."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = zip((height, width), self.padding, reach, self.stride, strict=True)
        first, second = ((size + 2 * pad - far) // step + 1 for size, pad, far, step in sizes)
        return first, second

    def sources(self, height: int, width: int) -> np.ndarray:
        """int64 [output positions, taps]: the input position that each tap reads, -1 where that is outside."""
        output = self.output(height, width)
        axes = zip(output, self.stride, self.padding, self.kernel, self.dilation, strict=True)
        rows, columns = (np.arange(n)[:, None] * step - pad + np.arange(k) * d for n, step, pad, k, d in axes)
        row, column = rows[:, None, :, None], columns[None, :, None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return np.where(inside, row * width + column, -1).reshape(-1, self.taps)

    def readers(self, height: int, width: int) -> np.ndarray:
        """int64 [input positions, taps]: the output position that each tap reads it for, -1 where there is none."""
        sources = self.sources(height, width)
        found = np.full((height * width, self.taps), -1, np.int64)
        position, tap = np.nonzero(sources >= 0)
        found[sources[position, tap], tap] = position
        return found


@dataclass(frozen=True, eq=False)
class ConvPattern:
    """The non-zeros of a kernel [out, in / groups, kh, kw], by ascending flat index; values stand in that order."""

    shape: tuple[int, ...]
    flat: np.ndarray  # int64 [nnz]
    groups: int = 1

    @property
    def count(self) -> int:
        """Non-zeros."""
        return len(self.flat)

    def positions(self) -> np.ndarray:
        """Flat indices into the dense kernel, int64 [nnz], in the order of the values."""
        return self.flat

    def channels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each non-zero the output channel, the input channel among those of all groups, and the tap: int64."""
        row, rest = np.divmod(self.flat, math.prod(self.shape[1:]))
        column, tap = np.divmod(rest, self.shape[2] * self.shape[3])
        return row, column + row // (self.shape[0] // self.groups) * self.shape[1], tap
