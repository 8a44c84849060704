"""A fingerprint of a network's topology that any program can recount from a file. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


class MaskHasher:
    """The digest of masks that arrive one by one, in the order of their names."""

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def add(self, name: str, shape: Sequence[int], bits: np.ndarray | Iterable[np.ndarray]) -> None:
        """bits: the mask, little bit order, [⌈n/8⌉] uint8, whole or in parts of whole bytes."""
        self._hasher.update(f"{name}\0{','.join(map(str, shape))}\0".encode())
        for part in [bits] if isinstance(bits, np.ndarray) else bits:
            self._hasher.update(np.ascontiguousarray(part).data)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def mask_digest(masks: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and packed bits, in the order of the names.

    masks: bool arrays in the shape of the weights [out, in, kernel...], by the weight's name in the model.
    """
    hasher = MaskHasher()
    for name in sorted(masks):
        mask = masks[name]
        hasher.add(name, mask.shape, np.packbits(mask.astype(bool).ravel(), bitorder="little"))
    return hasher.hexdigest()
