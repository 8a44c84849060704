"""Weights that stay in the file where they lie until a kernel takes them, and are read anew each time."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sparsify.engine.lazy import Lazy
from sparsify.errors import EngineError

_PART = 1 << 18  # elements that are read at a time, and stay in a cache until they are looked at


class Source(Protocol):
    """Bytes that can be read again at any time, by any thread."""

    size: int

    def read(self, start: int, into: np.ndarray) -> None:
        """Fill `into` (uint8) with the bytes from `start` on. Raises EngineError where they are not what they were."""


class OpenFile:
    """A file that stays open, so that it can be read though it be moved or deleted."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where it cannot be opened."""
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._look()
        self.size = self._state[0]

    def _look(self) -> tuple[int, int]:
        state = os.fstat(self.descriptor)
        return state.st_size, state.st_mtime_ns

    def read(self, start: int, into: np.ndarray) -> None:
        """As Source.read."""
        rest = into.data
        while rest and (count := os.preadv(self.descriptor, [rest], start + len(into) - len(rest))):
            rest = rest[count:]
        if rest or self._look() != self._state:
            raise EngineError(
                f"The model file '{self.path}' was written to after it had been opened, so its weights cannot be read "
                f"any more. Open it again; to replace a model that is in use, write a new file and rename it."
            )


class Bytes:
    """The bytes of a model that was given as such."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, start: int, into: np.ndarray) -> None:
        """As Source.read."""
        into[:] = np.frombuffer(self.data, np.uint8, len(into), start)


def canonical(array: np.ndarray, is_owned: bool = False) -> np.ndarray:
    """Floating point of 16 and 64 bits as float32; -0.0, which masking leaves behind, as 0. is_owned: whether the
    array may be written over."""
    if is_owned and array.dtype == np.float32:
        return np.add(array, np.float32(0), out=array)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):
            return np.asarray(np.asarray(array, np.float32) + np.float32(0))  # numpy makes a number of a 0-d array
    return array


@dataclass(frozen=True, eq=False)
class Unread(Lazy):
    """A float32 array that is in a file; numpy.asarray reads it."""

    source: Source
    start: int  # in the source
    stored: np.dtype[Any]  # the floating point that it is kept in
    nonzeros: int = 0

    nbytes = 0  # in memory

    def read(self, first: int, into: np.ndarray) -> None:
        """Fill `into` (float32, flat) with the elements from `first` on."""
        width = self.stored.itemsize
        for begin in range(0, len(into), _PART):
            part = into[begin : begin + _PART]
            raw = part.view(np.uint8) if self.stored == np.float32 else np.empty(len(part) * width, np.uint8)
            self.source.read(self.start + (first + begin) * width, raw)
            if self.stored != np.float32:
                part[:] = canonical(raw.view(self.stored))
            else:
                canonical(part, is_owned=True)

    def __getitem__(self, chosen: slice) -> np.ndarray:
        """Some of the array along its first axis."""
        first, last, _ = chosen.indices(len(self))
        inner = self.shape[1:]
        found = np.empty((last - first, *inner), np.float32)
        self.read(first * math.prod(inner), found.reshape(-1))
        return found

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """The flattened array part by part: number of the first element, and the part, which the next overwrites."""
        buffer = np.empty(min(_PART, self.size), np.float32)
        for first in range(0, self.size, _PART):
            part = buffer[: self.size - first]
            self.read(first, part)
            yield first, part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        dense = np.empty(self.shape, np.float32)
        self.read(0, dense.reshape(-1))
        return dense.astype(dtype or np.float32, copy=False)


def counted(weight: Unread) -> Unread:
    """The weight, whose non-zeros were counted."""
    return replace(weight, nonzeros=sum(int(np.count_nonzero(part != 0)) for _, part in weight.parts()))
