"""Memory for large arrays that are made at every step, used again.

torch gives a large tensor's memory back to the system and asks for it anew at the next step, and the system clears each
of its pages at the first touch: of a recurrent layer's step that was a third to a half.
"""

from __future__ import annotations

import math
from collections import defaultdict
from threading import Lock

import torch
from torch import Tensor

_LARGE = 1 << 16  # floats; below it torch's own memory is as good
_LOCK = Lock()


class Pool:
    """Float32 tensors on the CPU. Memory is free again when no tensor, saved ones of autograd included, uses it."""

    def __init__(self, lasts: int = 64) -> None:
        """lasts: requests that memory is kept for without being asked for."""
        self._lasts, self._requests = lasts, 0
        self._kept: dict[int, list[tuple[torch.UntypedStorage, int]]] = defaultdict(list)  # and the last request for it

    def empty(self, *shape: int) -> Tensor:
        """A contiguous tensor with anything in it."""
        size = 4 * math.prod(shape)
        if size < 4 * _LARGE:
            return torch.empty(shape)
        with _LOCK:
            self._requests += 1
            if self._requests % self._lasts == 0:
                self._forget()
            kept = self._kept[size]
            place = next((i for i, (storage, _) in enumerate(kept) if is_free(storage)), None)
            storage = torch.UntypedStorage(size) if place is None else kept.pop(place)[0]
            kept.append((storage, self._requests))
            return torch.empty(0).set_(storage, 0, shape)  # type: ignore[call-overload]

    def _forget(self) -> None:
        oldest = self._requests - self._lasts
        for size, kept in list(self._kept.items()):
            self._kept[size] = [(storage, last) for storage, last in kept if last > oldest]


def is_free(storage: torch.UntypedStorage) -> bool:
    """Whether this object alone still knows the storage."""
    return int(torch._C._storage_Use_Count(storage._cdata)) == 1


ACTIVATIONS = Pool(lasts=1024)  # of convolutional networks, whose layers hand them to each other
