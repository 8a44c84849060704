"""Masks recounted from values, a part at a time: nothing of a weight's size is made. numpy alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsify.formats._bits import StoredTensor
from sparsify.formats._positions import bitmask_parts


def mask_parts(tensor: StoredTensor, live: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The bits of a weight's mask, uint8 in little bit order, in parts that follow each other.

    live: ascending flat positions of connections whose weight is 0.
    """
    if tensor.entries is not None:
        positions, bits = tensor.entries()
        found = positions[bits << 1 != 0]  # the sign of -0.0 does not count
        yield from bitmask_parts(found if live is None else np.union1d(found, live), tensor.size)
        return
    start = 0
    for chunk in tensor.chunks():
        present = chunk << 1 != 0
        if live is not None:
            present[live[np.searchsorted(live, start) : np.searchsorted(live, start + len(chunk))] - start] = True
        start += len(chunk)
        yield np.packbits(present, bitorder="little")


def count(parts: Iterator[np.ndarray]) -> int:
    """Connections in a mask."""
    return sum(int(np.unpackbits(part).sum(dtype=np.int64)) for part in parts)
