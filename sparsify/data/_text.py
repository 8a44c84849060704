"""Text as bytes: a network reads a stretch of it and says at each position which byte comes next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.data import DataInfo, send
from sparsify.errors import DataError

VOCABULARY = 256


@dataclass(frozen=True, eq=False)
class Sequences:
    """A text cut into stretches of `length` bytes, each with the byte that follows it."""

    text: Tensor  # [bytes] uint8, on the CPU mapped from its file
    length: int

    def __len__(self) -> int:
        return count_sequences(len(self.text), self.length)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes [n, length] int64 of some stretches, and the bytes that follow each of them."""
        positions = send(rows, self.text.device)[:, None] * self.length + torch.arange(
            self.length + 1, device=self.text.device
        )
        found = self.text[positions].long()
        return found[:, :-1], found[:, 1:]

    def to(self, device: torch.device) -> Sequences:
        return replace(self, text=self.text.to(device))


def count_sequences(size: int, length: int) -> int:
    """Stretches in a text of `size` bytes."""
    return max(0, size - 1) // length


def text_info(size: int, length: int) -> DataInfo:
    """What is known of a training text of `size` bytes. Raises ValueError where no stretch fits."""
    if not 0 < length < size:
        raise ValueError(f"length = {length} must be at least 1 and below the text's {size:,} bytes")
    return DataInfo((length,), VOCABULARY, count_sequences(size, length), vocabulary=VOCABULARY)


def open_text(path: Path, size: int) -> Tensor:
    """The bytes [size] of a file, mapped and not read. Raises DataError where it is of another size."""
    found = path.stat().st_size if path.is_file() else 0
    if found != size:
        raise DataError(
            f"{path} should hold {size:,} bytes and holds {found:,}. It is another text, or was cut short. Put the "
            f"right file there, or choose another folder with --data or $SPARSIFY_DATA."
        )
    return torch.from_numpy(np.memmap(path, np.uint8, "c"))  # a copy on write, because torch knows no read-only tensors
