"""How quiet the machine was while times were taken."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

DRIFT, OTHERS, STOLEN = 1.10, 0.10, 0.02  # beyond these a machine is called noisy
BLOCK = bytes(1 << 22)
REPEATS = 8


@dataclass(frozen=True)
class Noise:
    """What disturbed the rounds of all cases. Shares are of the CPU time of the cores that could be used."""

    reference_ms: list[float] = field(default_factory=list)  # a loop that is always the same, after each round
    load: float | None = None  # load average of a minute, before anything was started
    others: float | None = None  # share taken by other processes
    stolen: float | None = None  # share that the hypervisor gave to other machines

    @property
    def drift(self) -> float:
        """The slowest reference loop over the fastest."""
        return max(self.reference_ms) / min(self.reference_ms) if self.reference_ms else 1.0

    def complaints(self) -> list[str]:
        """What was not quiet, in words; empty for a quiet machine."""
        found = []
        if self.drift > DRIFT:
            found.append(f"a loop that is always the same took between 1x and {self.drift:.2f}x of its time")
        if self.others is not None and self.others > OTHERS:
            found.append(f"other programs took {self.others:.0%} of the CPU time")
        if self.stolen is not None and self.stolen > STOLEN:
            found.append(f"the hypervisor gave {self.stolen:.0%} of the CPU time to other machines")
        return found


class Observer:
    """Gathers noise over the timed parts of a benchmark; what lies between `stop` and `start` does not count."""

    def __init__(self, threads: int) -> None:
        """threads: that the reference loop keeps busy, as the models do."""
        self._threads = threads
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._reference: list[float] = []
        self._busy = self._stolen = self._available = self._ours = 0.0
        self._begun: tuple[float, tuple[float, float] | None, float] | None = None

    def start(self) -> None:
        self._begun = time.perf_counter(), _cpu_seconds(), time.process_time()

    def tick(self) -> None:
        """Time the reference loop."""
        self._reference.append(1e3 * reference_loop(self._threads))

    def stop(self, ours: float) -> None:
        """ours: CPU seconds that the timed processes took since `start`."""
        assert self._begun is not None
        wall, before, own = self._begun
        after = _cpu_seconds()
        if before is not None and after is not None:
            self._busy += after[0] - before[0]
            self._stolen += after[1] - before[1]
            self._available += (time.perf_counter() - wall) * len(_cores())
            self._ours += ours + time.process_time() - own

    def noise(self) -> Noise:
        known = self._available > 0
        return Noise(
            reference_ms=list(self._reference),
            load=self._load,
            others=min(1.0, max(0.0, (self._busy - self._ours) / self._available)) if known else None,
            stolen=self._stolen / self._available if known else None,
        )


def reference_loop(threads: int) -> float:
    """Seconds until each of `threads` threads has done a piece of work that is always the same: the median of some."""
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            for done in [pool.submit(hashlib.sha256, BLOCK) for _ in range(threads)]:
                done.result()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cpu_seconds() -> tuple[float, float] | None:
    """Seconds that our cores have been busy, and that were stolen from them, since the start; None where unknown."""
    path = Path("/proc/stat")
    if not path.is_file():
        return None
    wanted = {f"cpu{core}" for core in _cores()}
    lines = [line.split() for line in path.read_text().splitlines()]
    ticks = [[int(field) for field in line[1:]] for line in lines if line and line[0] in wanted]
    if len(ticks) < len(wanted) or not all(len(row) >= 8 for row in ticks):
        return None
    second = os.sysconf("SC_CLK_TCK")
    # proc(5): user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(sum(row[i] for i in (0, 1, 2, 5, 6)) for row in ticks) / second
    return busy, sum(row[7] for row in ticks) / second
