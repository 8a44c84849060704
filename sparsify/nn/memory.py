"""Memory for large arrays that are made at every step, used again.

torch gives a large tensor's memory back to the system and asks for it anew at the next step, and the system clears each
of its pages at the first touch: of a recurrent layer's step that was a third to a half.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LARGE = 1 << 16  # floats; below it torch's own memory is as good
_LASTS = 64  # requests that memory is kept for without being asked for


class Pool:
    """Float32 tensors on the CPU. Memory is free again when no tensor, saved ones of autograd included, uses it."""

    def __init__(self) -> None:
        self._kept: list[tuple[torch.UntypedStorage, int]] = []  # and the number of the request that used it last
        self._requests = 0

    def empty(self, *shape: int) -> Tensor:
        """A contiguous tensor with anything in it."""
        size = 4 * math.prod(shape)
        if size < 4 * _LARGE:
            return torch.empty(shape)
        self._requests += 1
        found = next((s for s, _ in self._kept if s.nbytes() == size and _is_free(s)), None)
        storage = torch.UntypedStorage(size) if found is None else found
        recent = [(s, last) for s, last in self._kept if s is not found and last + _LASTS > self._requests]
        self._kept = [*recent, (storage, self._requests)]
        return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]


def _is_free(storage: torch.UntypedStorage) -> bool:
    return int(torch._C._storage_Use_Count(storage._cdata)) == 1
