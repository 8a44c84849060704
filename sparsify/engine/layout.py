"""How a value [n, c, h, w] lies in its buffer when kernels that slide over planes read or write it.

    buffer[c][block of images][phase][row][column][lane]

The planes have borders that always hold `fill`, so that a kernel tap outside the image is an ordinary load:
one constant offset per (channel, tap), no matter where in the plane. Neighbouring rows share their border
(`gap` positions serve as the right border of one row and the left border of the next).

`lanes` images lie side by side in a vector when the batch is large enough; every load is then aligned and a
vector is one position. Otherwise lanes is 1, a vector is as many positions of the flattened plane as fit,
and a convolution of stride s reads planes split by phase (row % s, column % s), so that its taps too are
constant offsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LINE = 16  # float32 in a cache line


@dataclass(frozen=True)
class Planes:
    """Borders are in positions of one phase plane; `lead` and `tail` are rows above and below."""

    images: int
    channels: int
    height: int
    width: int
    lanes: int = 1
    gap: int = 0
    lead: int = 0
    tail: int = 0
    phases: tuple[int, int] = (1, 1)  # planes are split by (row % phases[0], column % phases[1])
    fill: float = 0.0

    @property
    def rows(self) -> int:
        """Rows of one phase plane, without borders."""
        return -(-self.height // self.phases[0])

    @property
    def columns(self) -> int:
        """Columns of one phase plane, without borders."""
        return -(-self.width // self.phases[1])

    @property
    def pitch(self) -> int:
        """Positions from one row to the next."""
        return self.columns + self.gap

    @property
    def plane(self) -> int:
        """Positions of one phase plane with its borders."""
        return (self.lead + self.rows + self.tail) * self.pitch + self.gap

    @property
    def blocks(self) -> int:
        """Groups of `lanes` images."""
        return -(-self.images // self.lanes)

    @property
    def block(self) -> int:
        """Floats from one block of images to the next."""
        return self.phases[0] * self.phases[1] * self.plane * self.lanes

    @property
    def channel(self) -> int:
        """Floats from one channel to the next: an odd number of cache lines, so that channels do not all
        fall into the same few sets of a cache, plus a vector's overhang past the last position."""
        if self.images * self.height * self.width == 1:
            return 1
        floats = self.blocks * self.block + (LINE if self.lanes == 1 else 0)
        lines = -(-floats // LINE)
        return (lines | 1) * LINE

    @property
    def origin(self) -> int:
        """Floats before position (0, 0) of phase (0, 0) of a plane: its borders above and to the left."""
        return (self.lead * self.pitch + self.gap) * self.lanes

    @property
    def size(self) -> int:
        """Floats of the whole buffer."""
        return self.channels * self.channel + LINE

    def offset(self, row: int, column: int) -> int:
        """Floats from the start of a block to element (row, column) of its first lane.

        Rows and columns may lie outside the image as far as the borders reach.
        """
        down, right = self.phases
        phase = (row % down) * right + column % right
        position = (row // down) * self.pitch + column // right
        return phase * self.plane * self.lanes + self.origin + position * self.lanes

    def index(self) -> np.ndarray:
        """Offset in the buffer of every element: int64 [n, c, h, w]."""
        n = np.arange(self.images)
        image = (n // self.lanes) * self.block + n % self.lanes
        channel = np.arange(self.channels) * self.channel
        row, column = np.arange(self.height), np.arange(self.width)
        down, right = self.phases
        plane = self.plane * self.lanes
        vertical = (row % down) * right * plane + (row // down) * self.pitch * self.lanes
        horizontal = (column % right) * plane + (column // right) * self.lanes
        spatial = self.origin + vertical[:, None] + horizontal[None, :]
        return image[:, None, None, None] + channel[None, :, None, None] + spatial

    def pack(self, array: np.ndarray) -> np.ndarray:
        """The buffer that holds `array` [n, c, h, w]: the definition that copying kernels are held to."""
        buffer = np.full(self.size, self.fill, np.float32)
        buffer[self.index()] = array
        return buffer

    def unpack(self, buffer: np.ndarray) -> np.ndarray:
        """The array [n, c, h, w] in `buffer`."""
        return buffer[self.index()]
