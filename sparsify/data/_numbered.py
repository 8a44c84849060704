"""Data whose samples are had by their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from sparsify.data import WHOLE, DataInfo, Share, part, stream_rows


class Samples(Protocol):
    """Samples by their number, wherever they are."""

    def __len__(self) -> int: ...
    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]: ...  # inputs and labels of the samples `rows`, int64 [n]
    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True, eq=False)
class NumberedData:
    """Training and test samples, with the interface of `Dataset`."""

    info: DataInfo
    train: Samples
    test: Samples

    def to(self, device: torch.device) -> NumberedData:
        return NumberedData(self.info, self.train.to(device), self.test.to(device))

    def train_batch(self, step: int, size: int, seed: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Samples of a share of a training step's `size`; every epoch shows each sample once."""
        return self.train.batch(part(stream_rows(step, size, seed, len(self.train)), share))

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in order; the last batch may be smaller."""
        yield from (self.test.batch(rows) for rows in torch.arange(len(self.test)).split(size))
