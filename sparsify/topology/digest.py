"""A fingerprint of a network's topology that any program can recount from a file. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def mask_digest(masks: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and packed bits, in the order of the names.

    masks: bool arrays in the shape of the weights [out, in, kernel...], by the weight's name in the model.
    """
    hasher = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name]
        hasher.update(f"{name}\0{','.join(map(str, mask.shape))}\0".encode())
        hasher.update(np.packbits(mask.astype(bool).ravel(), bitorder="little").tobytes())
    return hasher.hexdigest()
