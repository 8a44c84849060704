"""Which buffer each value uses: buffers are handed on as soon as their last reader is done.

A buffer of planes is only handed on to values of the same geometry, because the borders around the planes
are written once, when the buffer is made, and never again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsify.engine.memory import LINE, Arena, lines
from sparsify.engine.program import Value
from sparsify.engine.stage import Layout

Place = tuple[str, Layout]  # a value in one of its layouts


@dataclass
class _Slot:
    """A buffer that values of one kind take in turns: `size` is channels of planes, or bytes."""

    kind: Layout
    size: int


def _kind(layout: Layout) -> Layout:
    if layout is None or layout.lanes > 1:  # with lanes, where the borders are depends on the channels
        return layout
    return replace(layout, channels=0)


def byte_size(value: Value) -> int:
    """Bytes of a value in C order, with room for a vector past its end."""
    return int(np.prod(value.shape)) * np.dtype(value.dtype).itemsize + LINE


class MemoryPlan:
    """Buffers for the places that steps read and write."""

    def __init__(
        self, values: dict[str, Value], steps: Sequence[tuple[Sequence[Place], Sequence[Place], Place | None]],
        outside: set[str],
    ) -> None:  # fmt: skip
        """`steps`: what each reads and writes, and what of that it may write over. C-ordered values named in
        `outside` get no buffer."""
        self._slots: list[_Slot] = []
        self._of: dict[Place, int] = {}
        last = {place: number for number, (reads, writes, _) in enumerate(steps) for place in (*reads, *writes)}
        free: list[int] = []
        for number, (reads, writes, replaced) in enumerate(steps):
            ending = [place for place in dict.fromkeys((*reads, *writes)) if last[place] == number]
            if replaced is not None and replaced in self._of and replaced in ending and replaced[1] == writes[0][1]:
                self._of[writes[0]] = self._of[replaced]
                ending.remove(replaced)
            for place in writes:
                if place not in self._of and not (place[0] in outside and place[1] is None):
                    self._take(place, values[place[0]], free)
            free += [self._of[place] for place in ending if place in self._of]
        arena = Arena(sum(lines(_bytes(slot)) for slot in self._slots))
        self._buffers = [_allocate(slot, arena) for slot in self._slots]

    def _take(self, place: Place, value: Value, free: list[int]) -> None:
        layout = place[1]
        size = byte_size(value) if layout is None else layout.channels
        fitting = [slot for slot in free if self._slots[slot].kind == _kind(layout)]
        if fitting:
            best = min(fitting, key=lambda slot: abs(self._slots[slot].size - size))
            free.remove(best)
            self._slots[best].size = max(self._slots[best].size, size)
        else:
            best = len(self._slots)
            self._slots.append(_Slot(_kind(layout), size))
        self._of[place] = best

    def slot(self, place: Place) -> int | None:
        """Which buffer a place is in; None where it is the caller's own array."""
        return self._of.get(place)

    def buffer(self, place: Place) -> np.ndarray:
        """The memory of a place: float32 for planes, bytes otherwise."""
        return self._buffers[self._of[place]]

    @property
    def bytes(self) -> int:
        """All memory of the plan."""
        return sum(buffer.nbytes for buffer in self._buffers)


def _bytes(slot: _Slot) -> int:
    if slot.kind is None:
        return slot.size
    return 4 * replace(slot.kind, channels=slot.size).size


def _allocate(slot: _Slot, arena: Arena) -> np.ndarray:
    piece = arena.take(_bytes(slot))
    if slot.kind is None:
        return piece
    floats = piece.view(np.float32)
    if slot.kind.fill:
        floats[:] = slot.kind.fill
    return floats
