"""What a model may ask for: every limit of the engine against hostile or damaged files."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsify.errors import EngineError


@dataclass(frozen=True)
class Limits:
    """Sizes beyond which a model is refused before anything of that size is allocated."""

    file_bytes: int = 2**31  # what protobuf can hold; weights beyond that are external data
    external_bytes: int = 2**36
    nodes: int = 200_000
    nesting: int = 16  # subgraphs and functions inside each other
    rank: int = 32
    value_bytes: int = 2**32
    folded_bytes: int = 2**28  # constants computed from the file's own, plus `folding` times its size
    folding: int = 1000  # a weight 99.9 % sparse unfolds by this much

    def __post_init__(self) -> None:
        if min(vars(self).values()) <= 0:
            raise ValueError("limits must be positive")


LIMITS = Limits()


class Budget:
    """Bytes that a file's packed or computed weights may still unfold to."""

    def __init__(self, file_bytes: int) -> None:
        self.left = LIMITS.folded_bytes + LIMITS.folding * file_bytes

    def spend(self, size: int) -> None:
        """Raises EngineError where a small file asks for a lot of memory."""
        self.left -= size
        if self.left < 0:
            raise EngineError(
                "The model's weights unfold to far more memory than a file of its size can need. The file is "
                "damaged or hostile; if it is neither, write its weights in the plain, dense form."
            )


def check_shape(what: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array of this shape and dtype. Raises EngineError beyond the limits."""
    if len(shape) > LIMITS.rank or any(size < 0 for size in shape):
        raise EngineError(
            f"{what} has the shape {shape}, which no array can have here: sizes must not be negative and "
            f"there may be at most {LIMITS.rank} axes. The file is damaged, or the input does not fit it."
        )
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > LIMITS.value_bytes:
        raise EngineError(
            f"{what} has the shape {shape}, which takes {size / 2**30:.1f} GiB; the engine allows "
            f"{LIMITS.value_bytes / 2**30:.0f} GiB for one array. The file is damaged, or the input is too "
            f"large: run it in smaller batches."
        )
    return size
