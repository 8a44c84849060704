"""Magnitude pruning of a stored weight, exactly to a sparsity. numpy alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sparsify.errors import SparsityError
from sparsify.formats._bits import StoredTensor


def prune(tensor: StoredTensor, sparsity: float) -> StoredTensor:
    """The weight with floor(s n) of its n elements at +0.0, those of smallest magnitude.

    Zeros that are there count, -0.0 becomes +0.0, and NaN is larger than all; among equal magnitudes the lower
    flat index is dropped first. Anything but matrices and kernels, and depthwise kernels, stay as they are.
    """
    count = math.floor(sparsity * tensor.size)
    depthwise = len(tensor.shape) > 2 and tensor.shape[1] == 1
    if not tensor.is_weight or depthwise or not tensor.size:
        return tensor

    def chunks() -> Iterator[np.ndarray]:
        # The bits of a float without its sign are in the order of its magnitude.
        magnitudes = tensor.bits() << 1
        threshold, ties = magnitudes.dtype.type(0), 0
        if count:
            magnitudes.partition(count - 1)
            threshold = magnitudes[count - 1]
            ties = count - int(np.count_nonzero(magnitudes < threshold))
        del magnitudes
        for chunk in tensor.chunks():
            magnitude = chunk << 1
            dropped = (magnitude < threshold) | (magnitude == 0)
            equal = np.flatnonzero(magnitude == threshold)[:ties]
            dropped[equal] = True
            ties -= len(equal)
            yield np.where(dropped, 0, chunk).astype(chunk.dtype)

    return replace(tensor, chunks=chunks)


def check_sparsity(sparsity: float) -> None:
    """Raise SparsityError unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise SparsityError(
            f"A weight cannot be pruned to a sparsity of {sparsity}: it is the share of its elements that become "
            f"zero, at least 0 and less than 1. Give for example --prune 0.9."
        )
