"""Running several operations a band of rows at a time, so that what lies between them stays in a cache.

With images side by side the values of a network's first operations are larger than any cache. A few rows of them
are not, and a convolution needs no more of what the one before it writes. So neighbouring operations take turns,
each going as far as the others need. Nothing is computed twice, and buffers stay whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from sparsify.engine.stage import Sweep

_FAR = 3  # times the size of a band: values around an operation that no cache holds


@dataclass(frozen=True)
class Visit:
    """Some tiles of one step."""

    step: int
    first: int
    tiles: int


@dataclass(frozen=True, eq=False)
class Moving:
    """A step that goes through its rows in order, and the buffers that it uses."""

    sweep: Sweep
    reads: tuple[int, ...]
    writes: int
    bytes: int  # of these buffers
    # Other buffers in the memory of what it writes: how many of their rows one of its own takes.
    over: Mapping[int, float] = field(default_factory=dict)


def turns(steps: Sequence[Moving | int], band: int) -> list[range]:
    """The steps that take turns, in their order: each run of them that no cache holds. An int is a step of so many
    tiles that does not go row by row. `band`: bytes around one operation that stay in a cache."""
    found: list[range] = []
    start = 0
    while start < len(steps):
        stop = start
        while stop < len(steps) and isinstance(steps[stop], Moving):
            stop += 1
        run = cast("list[Moving]", steps[start:stop])
        far = [number for number, step in enumerate(run) if step.bytes > _FAR * band]
        if len(far) > 1:  # all that lies between the first and the last of them
            found.append(range(start + far[0], start + far[-1] + 1))
            start += far[-1] + 1
        else:
            start = max(stop, start + 1)
    return found


def visits(steps: Sequence[Moving | int], band: int) -> list[Visit]:
    """All tiles of `steps`, in the order in which they may run; arguments as those of `turns`."""
    found: list[Visit] = []
    start = 0
    for run in (*turns(steps, band), range(len(steps), len(steps))):
        found += [_whole(steps[number], number) for number in range(start, run.start)]
        if run:
            found += _in_bands(cast("list[Moving]", steps[run.start : run.stop]), run.start, band)
        start = run.stop
    return found


def _whole(step: Moving | int, number: int) -> Visit:
    return Visit(number, 0, step if isinstance(step, int) else len(step.sweep.panels) * step.sweep.tiles)


def _in_bands(run: Sequence[Moving], start: int, band: int) -> list[Visit]:
    bands = -(-max(step.bytes for step in run) // band)
    done, found = [0] * len(run), []
    for number in range(1, bands + 1):
        goals = _goals(run, number / bands, done)
        for index, (step, goal) in enumerate(zip(run, goals, strict=True)):
            each = step.sweep.tiles
            if goal > done[index]:
                found.append(Visit(start + index, done[index] * each, (goal - done[index]) * each))
        done = goals
    return found


def _goals(run: Sequence[Moving], share: float, done: Sequence[int]) -> list[int]:
    """How many panels each step must have done when the last ones have done a `share` of theirs."""
    rows = [0] * len(run)  # of its output that a step must have done
    goals = list(done)
    for index in range(len(run) - 1, -1, -1):
        step, before = run[index], run[:index]
        panels = step.sweep.panels
        if share == 1 or not any(step.writes in later.reads for later in run[index + 1 :]):
            rows[index] = max(rows[index], round(panels[-1, 1] * share))
        whole = np.append(panels[1:, 0], panels[-1, 1])  # rows that are done with each panel
        goals[index] = max(done[index], int(np.searchsorted(whole, rows[index])) + 1 if rows[index] else 0)
        if not goals[index]:
            continue
        end = panels[goals[index] - 1, 1]  # from here on rows are as they were
        for buffer, needs in zip(step.reads, step.sweep.reads, strict=True):
            writers = [other for other, earlier in enumerate(before) if earlier.writes == buffer]
            if writers:
                rows[writers[-1]] = max(rows[writers[-1]], needs[:end, 1].max())
        over = {step.writes: 1.0, **step.over}
        for other, earlier in enumerate(before):  # what is written over must be there, and have been read
            if earlier.writes in over:
                last = earlier.sweep.panels[-1, 1]
                rows[other] = max(rows[other], min(last, math.ceil(end * over[earlier.writes])))
            for buffer, needs in zip(earlier.reads, earlier.sweep.reads, strict=True):
                if buffer in over:
                    reached = np.searchsorted(needs[:, 0], math.ceil(end * over[buffer]))
                    rows[other] = max(rows[other], int(reached))
    return goals
