"""A model's constants by name, with the zeros of large weights left out of memory."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.engine.program import Shape, Value

Array = np.ndarray[Any, Any]
LARGE = 4096  # elements
DENSEST = 0.4  # density up to which a non-zero and its place take less than a dense array


@dataclass(frozen=True, eq=False)
class _Packed:
    shape: Shape
    places: Array  # int32 [nnz]
    numbers: Array  # float32 [nnz]

    def unpacked(self) -> Array:
        dense = np.zeros(int(np.prod(self.shape)), np.float32)
        dense[self.places] = self.numbers
        return dense.reshape(self.shape)


class Constants(MutableMapping[str, Array]):
    """Arrays by name. A large, sparse one is unpacked anew each time that it is asked for."""

    def __init__(self) -> None:
        self._entries: dict[str, Array | _Packed] = {}

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        return entry.unpacked() if isinstance(entry, _Packed) else entry

    def __setitem__(self, name: str, array: Array) -> None:
        self._entries[name] = array
        if array.dtype == np.float32 and LARGE <= array.size < 2**31:
            flat = array.reshape(-1)
            is_there = flat != 0
            if np.count_nonzero(is_there) <= DENSEST * array.size:
                places = np.flatnonzero(is_there).astype(np.int32)
                self._entries[name] = _Packed(array.shape, places, flat[places])

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def value(self, name: str) -> Value:
        """What is known of a constant without unpacking it."""
        entry = self._entries[name]
        dtype = "float32" if isinstance(entry, _Packed) else str(entry.dtype)
        return Value(name, entry.shape, dtype)

    def chosen(self, names: dict[str, str]) -> Constants:
        """Some of the constants, each as it is stored: {new name: old name}."""
        found = Constants()
        found._entries = {new: self._entries[old] for new, old in names.items()}
        return found
