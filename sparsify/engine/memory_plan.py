"""Which memory each value uses: buffers for values of one geometry, and where in one arena they lie.

A value's buffer is handed on as soon as its last reader is done. One of planes whose borders a reader looks at is only
handed on to values of the same geometry, because these borders must hold. Buffers whose lives do not meet lie in the
same memory, which is near because it was used not long before. There borders are written in every run; buffers of
which they are a large part keep their memory. Placing the largest first, each as low as possible, is the greedy-by-size
method of Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsify.engine.kernels.borders import gaps
from sparsify.engine.layout import Planes
from sparsify.engine.memory import AROUND, LINE, Arena, lines
from sparsify.engine.program import Value
from sparsify.engine.stage import Layout
from sparsify.engine.tuning import Tuning

Place = tuple[str, Layout]  # a value in one of its layouts


@dataclass
class _Slot:
    """A buffer that values of one kind take in turns: `size` is channels of planes, or bytes."""

    kind: Layout
    size: int
    first: int  # step that writes to it, and the last one that reads it
    last: int
    around: tuple[int, int] = (0, -1)  # the same, with all steps that take turns with these
    offset: int = 0  # in the arena
    has_borders: bool = False  # that matter
    is_filled: bool = True  # between rows, wherever they do
    is_kept: bool = False  # for all runs, by no other values

    @property
    def layout(self) -> Planes:
        assert self.kind is not None
        return replace(self.kind, channels=self.size)

    @property
    def bytes(self) -> int:
        return lines(self.size if self.kind is None else 4 * self.layout.size)

    @property
    def border(self) -> int:
        """Bytes of the lines that are touched where the borders are written."""
        layout = self.layout
        size = sum(lines(4 * int(length)) for _, length in gaps(layout, self.is_filled))
        return size * (layout.channels if layout.lanes == 1 else 1)

    @property
    def end(self) -> int:
        return self.offset + self.bytes


def _kind(layout: Layout) -> Layout:
    if layout is None or layout.lanes > 1:  # with lanes, where the borders are depends on the channels
        return layout
    return replace(layout, channels=0)


def byte_size(value: Value) -> int:
    """Bytes of a value in C order, with room for a vector past its end."""
    return int(np.prod(value.shape)) * np.dtype(value.dtype).itemsize + LINE


def has_borders(layout: Layout) -> bool:
    """Whether a buffer holds anything but elements."""
    if layout is None:
        return False
    return layout.lanes == 1 or (layout.blocks * layout.plane) != layout.blocks * layout.height * layout.width


class MemoryPlan:
    """Buffers for the places that steps read and write."""

    def __init__(
        self, values: dict[str, Value], steps: Sequence[tuple[Sequence[Place], Sequence[Place], Place | None]],
        outside: set[str], around: set[Place], filled: set[Place], tuning: Tuning,
    ) -> None:  # fmt: skip
        """`steps`: what each reads and writes, and what of that it may write over. C-ordered values named in
        `outside` get no buffer. around: places whose borders matter; filled: those that are
        written with what lies between their rows.
        Nothing has memory before `settle`."""
        self._slots: list[_Slot] = []
        self._of: dict[Place, int] = {}
        self._around = {place: place in filled for place in around if has_borders(place[1])}
        last = {place: number for number, (reads, writes, _) in enumerate(steps) for place in (*reads, *writes)}
        free: list[int] = []
        for number, (reads, writes, replaced) in enumerate(steps):
            ending = [place for place in dict.fromkeys((*reads, *writes)) if last[place] == number]
            if replaced is not None and replaced in self._of and replaced in ending and replaced[1] == writes[0][1]:
                self._of[writes[0]] = self._of[replaced]
                self._mark(writes[0])
                ending.remove(replaced)
            for place in writes:
                if place not in self._of and not (place[0] in outside and place[1] is None):
                    self._take(place, values[place[0]], number, free)
            for place in (*reads, *writes):
                if place in self._of:
                    self._slots[self._of[place]].last = number
            free += [n for place in ending if (n := self._of.get(place)) is not None and self._slots[n].has_borders]
        bordered = [slot for slot in self._slots if slot.has_borders and slot.border > tuning.border_share * slot.bytes]
        if sum(slot.bytes for slot in bordered) <= tuning.border_bytes:
            for slot in bordered:
                slot.first, slot.last, slot.is_kept = 0, len(steps), True

    def _take(self, place: Place, value: Value, number: int, free: list[int]) -> None:
        layout = place[1]
        size = byte_size(value) if layout is None else layout.channels
        fitting = [n for n in free if place in self._around and self._slots[n].kind == _kind(layout)]
        if fitting:
            best = min(fitting, key=lambda slot: abs(self._slots[slot].size - size))
            free.remove(best)
            self._slots[best].size = max(self._slots[best].size, size)
        else:
            best = len(self._slots)
            self._slots.append(_Slot(_kind(layout), size, number, number))
        self._of[place] = best
        self._mark(place)

    def _mark(self, place: Place) -> None:
        """Note in its buffer what a place needs."""
        slot = self._slots[self._of[place]]
        slot.has_borders |= place in self._around
        slot.is_filled &= self._around.get(place, True)

    def settle(self, turns: Sequence[range]) -> None:
        """Give every place its memory. turns: the runs of steps that take turns, so that what one of them has
        read another may be about to write over."""
        for slot in self._slots:
            first, last = ([run for run in turns if number in run] for number in (slot.first, slot.last))
            slot.around = (first[0].start if first else slot.first, last[0].stop - 1 if last else slot.last)
        placed: list[_Slot] = []
        for slot in sorted(self._slots, key=lambda slot: (0, 0) if slot.is_kept else (1, -slot.bytes)):
            near = [other for other in placed if _meet(slot.around, other.around)]
            places = sorted({0, *(other.end for other in near), *(other.offset for other in near)})
            slot.offset = next(at for at in places if all(_is_fit(slot, at, other) for other in near))
            placed.append(slot)
        arena = Arena(AROUND + max((slot.end for slot in self._slots), default=0) + AROUND)
        arena.take(AROUND)
        memory = arena.take(arena.size - AROUND)
        self._buffers = [memory[slot.offset : slot.end] for slot in self._slots]
        for slot, buffer in zip(self._slots, self._buffers, strict=True):
            if slot.is_kept and slot.layout.fill:
                buffer.view(np.float32)[:] = slot.layout.fill

    def slot(self, place: Place) -> int | None:
        """Which buffer a place is in; None where it is the caller's own array."""
        return self._of.get(place)

    def buffer(self, place: Place) -> np.ndarray:
        """The memory of a place: uint8."""
        return self._buffers[self._of[place]]

    def over(self, slot: int) -> dict[int, float]:
        """Buffers in the same memory whose steps take turns with this one's: how many of their rows a row
        of it takes."""
        mine = self._slots[slot]
        return {
            number: _row(mine) / _row(other)
            for number, other in enumerate(self._slots)
            if other.last < mine.first and _meet(mine.around, other.around) and _overlap(mine, mine.offset, other)
        }

    def borders(self) -> list[tuple[int, Place, bool]]:
        """Before which step which place's borders must be written in every run, and whether what lies between its rows
        is filled with them."""
        found: dict[int, Place] = {}
        for place, number in self._of.items():
            slot = self._slots[number]
            if slot.has_borders and not slot.is_kept and slot.layout == place[1]:  # all channels of the slot
                found[number] = place
        slots = self._slots
        return [(slots[number].around[0], place, slots[number].is_filled) for number, place in found.items()]

    @property
    def bytes(self) -> int:
        """All memory of the plan."""
        return max((slot.end for slot in self._slots), default=0)


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _overlap(slot: _Slot, at: int, other: _Slot) -> bool:
    return at < other.end and other.offset < at + slot.bytes


def _row(slot: _Slot) -> int:
    """Floats of a row of all channels, images side by side."""
    return slot.layout.pitch * slot.layout.step


def _is_fit(slot: _Slot, at: int, other: _Slot) -> bool:
    """Whether a buffer may lie at an offset, given another one that is placed and needed at about the same time.

    Where their steps take turns the later one may be written over the earlier one from its beginning, row by row,
    if it is no larger: then neither gets ahead of the other.
    """
    if not _overlap(slot, at, other):
        return True
    before, after = (slot, other) if slot.last < other.first else (other, slot)
    return (
        before.last < after.first
        and at == other.offset
        and after.bytes <= before.bytes
        and all(s.kind is not None and s.kind.lanes > 1 for s in (slot, other))
        and not has_borders(after.kind)
    )
