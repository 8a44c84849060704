"""How a value [n, c, h, w] lies in its buffer when kernels that slide over planes read or write it.

    buffer[channel][phase][block of images][row][column]          a vector is a run of positions
    buffer[band][channel][row of the band][column]                the same, one image
    buffer[block of images][row][column][channel][lane]           a vector is a position of `lanes` images

Planes have borders that always hold `fill`, so that a tap outside the image is an ordinary load: a constant
offset per (channel, tap), the same everywhere in the plane. Neighbouring rows share their border: the
`pitch - columns` positions after one row are also those before the next.

`lanes` images lie side by side in a vector when the batch is large enough; every load is then aligned, and
what one position needs of all channels lies together. Otherwise lanes is 1, a vector is as many positions of
the flattened planes as fit, and a convolution of stride s reads planes that are split by phase
(row % s, column % s), so that its taps too are constant offsets.

Threads that share one image take a band of its rows each. Planes that are read without a border can lie in such
bands, each with all of its channels. What a thread reads and writes is then all its own, no cache's prefetcher runs
from it into what another thread writes, and it lies on half the pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LINE = 16  # float32 in a cache line, and in the widest vector


def up(number: int, multiple: int) -> int:
    """`number` rounded up to a multiple."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Planes:
    """The layout of one value. Positions are of one phase plane."""

    images: int
    channels: int
    height: int
    width: int
    lanes: int
    pitch: int  # positions from one row to the next
    plane: int  # positions from one block of images to the next
    lead: int  # positions before the first row of the first block
    tail: int  # positions after the last row of the last block
    phases: tuple[int, int] = (1, 1)  # vertical and horizontal
    fill: float = 0.0
    kept: tuple[int, int] | None = None  # phases that are there at all, the first ones (None: all)
    band_height: int | None = None  # rows of each band, the last one may have fewer (None: one band of all)

    @property
    def split(self) -> tuple[int, int]:
        """Phases that the buffer holds, vertical and horizontal."""
        return self.kept or self.phases

    @property
    def blocks(self) -> int:
        """Groups of `lanes` images."""
        return -(-self.images // self.lanes)

    @property
    def step(self) -> int:
        """Floats from one position to the next: with lanes, an odd number of vectors, for the caches' sake."""
        return 1 if self.lanes == 1 else (self.channels | 1) * self.lanes

    @property
    def phase(self) -> int:
        """Floats from one phase to the next."""
        return up((self.lead + self.blocks * self.plane + self.tail) * self.step, LINE)

    @property
    def channel(self) -> int:
        """Floats from one channel to the next: an odd number of cache lines, so that the channels do not
        all fall into the same few sets of a cache."""
        if self.lanes > 1:
            return self.lanes
        lines = self.split[0] * self.split[1] * self.phase // LINE
        return (lines | 1) * LINE

    @property
    def band(self) -> int:
        """Floats from one band of rows to the next."""
        return self.phase if self.lanes > 1 else self.channels * self.channel

    @property
    def band_rows(self) -> int:
        """Rows of each band."""
        return self.band_height or max(self.height, 1)

    @property
    def bands(self) -> int:
        """How many there are."""
        return -(-self.height // self.band_rows)

    @property
    def size(self) -> int:
        """Floats of the whole buffer."""
        return self.bands * self.band

    def row(self, number: int) -> int:
        """Floats from the buffer's begin to a row of its first channel, image and phase."""
        band, row = divmod(number, self.band_rows)
        return (self.lead + row * self.pitch) * self.step + band * self.band

    @property
    def vectors(self) -> bool:
        """Whether this is nothing but a vector for each image: [n, c, 1, 1]."""
        return self.height == self.width == 1

    def shift(self, row: int, column: int) -> int:
        """Floats from the position (0, 0) of phase (0, 0) to element (row, column), borders included."""
        down, right = self.phases
        phase = (row % down) * self.split[1] + column % right
        return phase * self.phase + ((row // down) * self.pitch + column // right) * self.step

    @property
    def elements(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the columns of the image that the buffer holds."""
        row, column = np.arange(self.height), np.arange(self.width)
        return row[row % self.phases[0] < self.split[0]], column[column % self.phases[1] < self.split[1]]

    def index(self) -> np.ndarray:
        """Offset in the buffer of every element that is there: int64 [n, c, h, w]."""
        images = np.arange(self.images)
        image = (images // self.lanes) * self.plane * self.step + images % self.lanes
        channel = np.arange(self.channels) * self.channel
        down, right = self.phases
        row, column = self.elements
        vertical = (row % down) * self.split[1] * self.phase + (row // down) * self.pitch * self.step
        if self.bands > 1:
            vertical = row // self.band_rows * self.band + row % self.band_rows * self.pitch
        horizontal = (column % right) * self.phase + (column // right) * self.step
        spatial = self.lead * self.step + vertical[:, None] + horizontal[None, :]
        return image[:, None, None, None] + channel[None, :, None, None] + spatial

    def pack(self, array: np.ndarray) -> np.ndarray:
        """The buffer that holds `array` [n, c, h, w]: the definition that copying kernels are held to."""
        buffer = np.full(self.size, self.fill, np.float32)
        rows, columns = self.elements
        buffer[self.index()] = array[:, :, rows][..., columns]
        return buffer

    def unpack(self, buffer: np.ndarray) -> np.ndarray:
        """The array [n, c, h, w] in `buffer`, without the phases that are not kept."""
        return buffer[self.index()]
