"""A model's constants by name: large weights stay in their file, and zeros of what is computed out of memory."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np

from sparsify.engine.nonzeros import Weight, packed
from sparsify.engine.program import Value

Array = np.ndarray[Any, Any]


class Constants(MutableMapping[str, Array]):
    """Arrays by name. A large one, if it is sparse or in a file, is made anew each time that it is asked for."""

    def __init__(self) -> None:
        self._entries: dict[str, Weight] = {}

    def __getitem__(self, name: str) -> Array:
        entry = self._entries[name]
        return entry if isinstance(entry, np.ndarray) else np.asarray(entry)

    def __setitem__(self, name: str, array: Array) -> None:
        self._entries[name] = packed(array)

    def keep(self, name: str, weight: Weight) -> None:
        """Add a constant as it is stored."""
        self._entries[name] = weight

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def stored(self, name: str) -> Weight | None:
        """A constant as it is stored; None where there is none of this name."""
        return self._entries.get(name)

    def value(self, name: str) -> Value:
        """What is known of a constant without unpacking or reading it."""
        entry = self._entries[name]
        return Value(name, entry.shape, str(entry.dtype))

    def chosen(self, names: dict[str, str]) -> Constants:
        """Some of the constants, each as it is stored: {new name: old name}."""
        found = Constants()
        found._entries = {new: self._entries[old] for new, old in names.items()}
        return found
