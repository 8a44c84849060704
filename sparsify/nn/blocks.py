"""How a batch of sequences lies in memory for the native recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.engine.target import Target
from sparsify.nn.kernels.products import MOST
from sparsify.nn.kernels.sequence import NUMBERS, sizes
from sparsify.nn.memory import Pool
from sparsify.nn.products import Lanes

_PANELS = 4  # of a batch, where it fills that many: each is one thread's work from the first step to the last


@dataclass(frozen=True)
class Blocks:
    """Arrays [panels * blocks, rows, per_block * wide]: each panel of the batch by itself, some steps side by side.

    Products over the whole sequence take a block at a time, with full vectors; a step of one panel is `wide` columns of
    one block. What is filled up - samples of the last panel, steps of the last block - is 0.
    """

    count: int  # sequences
    steps: int
    width: int  # floats in a vector
    vectors: int  # of a panel
    panels: int
    per_block: int  # steps side by side
    blocks: int  # of a panel

    @classmethod
    def of(cls, count: int, steps: int, target: Target) -> Blocks:
        """For `count` sequences of `steps` steps; the same whatever the number of threads."""
        most, total = MOST[target.level], -(-count // target.width)
        vectors = max(size for size in sizes(most) if size == 1 or total >= _PANELS * size)
        per_block = most // vectors
        return cls(count, steps, target.width, vectors, -(-total // vectors), per_block, -(-steps // per_block))

    @property
    def wide(self) -> int:
        """Sequences in a panel."""
        return self.vectors * self.width

    @property
    def batch(self) -> int:
        """Sequences in all panels."""
        return self.panels * self.wide

    @property
    def pitch(self) -> int:
        """Columns of a block."""
        return self.per_block * self.wide

    def empty(self, pool: Pool, rows: int) -> Tensor:
        """[panels * blocks, rows, pitch], zero where no step is."""
        result = pool.empty(self.panels, self.blocks, rows, self.per_block, self.wide)
        result[:, -1, :, self.steps - (self.blocks - 1) * self.per_block :] = 0
        return result.view(-1, rows, self.pitch)

    def pack(self, x: Tensor) -> Tensor:
        """[count, steps, rows] as blocks."""
        rows = x.shape[2]
        missing = (self.batch - self.count, self.blocks * self.per_block - self.steps)
        if any(missing):
            x = torch.nn.functional.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        parts = x.reshape(self.panels, self.wide, self.blocks, self.per_block, rows)
        return parts.permute(0, 2, 4, 3, 1).contiguous().view(-1, rows, self.pitch)

    def unpack(self, blocks: Tensor) -> Tensor:
        """The inverse of `pack`."""
        rows = blocks.shape[1]
        parts = blocks.view(self.panels, self.blocks, rows, self.per_block, self.wide).permute(0, 4, 1, 3, 2)
        return parts.reshape(self.batch, -1, rows)[: self.count, : self.steps]

    def beside(self, x: Tensor) -> Tensor:
        """[count, steps, rows] as [rows, steps, batch]; not copied where it lies so already."""
        turned = x.permute(2, 1, 0)
        if self.batch == self.count:
            return turned.contiguous()
        result = x.new_zeros(x.shape[2], self.steps, self.batch)
        result[:, :, : self.count] = turned
        return result

    def planes(self, parts: int, rows: int, given: Sequence[Tensor | None]) -> Tensor:
        """Planes of each panel alone, [panels, parts, rows, wide]: in the first ones what is given, [count, rows] each,
        or zeros; in the others anything."""
        result = torch.empty(self.panels, parts, rows, self.wide)
        for part, tensor in enumerate(given):
            if tensor is None:
                result[:, part] = 0
            else:
                filled = torch.nn.functional.pad(tensor, (0, 0, 0, self.batch - self.count))
                result[:, part] = filled.view(self.panels, self.wide, rows).transpose(1, 2)
        return result

    def plane(self, planes: Tensor, part: int) -> Tensor:
        """One of the parts of `planes` as [count, rows], a tensor of its own."""
        return planes[:, part].transpose(1, 2).reshape(self.batch, planes.shape[2])[: self.count]

    def lanes(self, inputs: int, outputs: int) -> Lanes:
        """For a product over all steps, of arrays of so many rows."""
        columns = self.panels * self.blocks * self.pitch
        most = self.pitch // self.width
        return Lanes(columns, most, self.panels * self.blocks, self.pitch, inputs * self.pitch, outputs * self.pitch)

    def step_lanes(self) -> Lanes:
        """For the product of one step of one panel, in planes of its own."""
        return Lanes(self.wide, self.vectors, 1, self.wide, self.wide, self.wide)

    def numbers(self, units: int, tiles: int) -> np.ndarray:
        """What `kernels/sequence.py` reads, int64."""
        found = {
            "steps": self.steps, "per_block": self.per_block, "blocks": self.blocks, "units": units, "tiles": tiles,
            "pitch": 4 * self.pitch, "outer": 4 * self.steps * self.batch, "across": 4 * self.batch,
        }  # fmt: skip
        return np.array([found[name] for name in NUMBERS], np.int64)
