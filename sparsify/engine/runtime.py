"""Threads that run compiled programs: one native call a run, and workers that sleep between runs."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from functools import cache

import numpy as np

from sparsify.engine import runtime_ir
from sparsify.engine.library import Library, library
from sparsify.engine.memory import aligned
from sparsify.engine.runtime_ir import JOB, LINE, POOL_ACTIVE, POOL_PARKED, RECORD
from sparsify.engine.target import Target, available_cores
from sparsify.engine.turns import Turns

_SPINS = 16000  # pauses, some 200 microseconds in all, before a waiting thread gives up its core
_CROWDED = 50  # the same where there are more threads than cores
_START = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_TAKE_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_SERVE = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64])
Record = tuple[int, int, int, int, int]  # function, buffer and constant table (addresses), tiles, first tile


def spins(threads: int) -> int:
    """How long a thread should wait before it yields."""
    return _SPINS if threads <= available_cores() else _CROWDED


class Job:
    """Stages as the native runtime sees them. Holds no memory of theirs but the tables of addresses."""

    def __init__(self, records: Sequence[Record], threads: int) -> None:
        stages = len(records)
        self.records = aligned(stages * RECORD, np.int64)
        self.records[:] = np.array(records, np.int64).ravel()
        self.counters = aligned(stages * (threads + 1) * LINE, np.int64)
        self.clock = aligned(stages + 1, np.int64)
        shares = self.counters.reshape(-1, threads + 1, LINE)
        for stage, record in enumerate(records):
            tiles, first = record[3:]
            shares[stage, 1:, 1] = [first + tiles * (t + 1) // threads for t in range(threads)]
        self.head = aligned(JOB, np.int64)
        addresses = [a.ctypes.data for a in (self.records, self.counters, self.clock)]
        self.head[1:7] = [stages, threads, *addresses, spins(threads)]
        self.address = self.head.ctypes.data

    def shares(self) -> np.ndarray:
        """The part of the last run's time that each stage took: float64 [stages], sum 1; zeros if unknown."""
        ticks = np.diff(self.clock).astype(np.float64)
        return ticks / ticks.sum() if ticks.sum() > 0 else np.zeros_like(ticks)


class Pool:
    """`threads` - 1 workers and the caller. One job runs at a time; others wait for the lock."""

    def __init__(self, library: Library, threads: int) -> None:
        self.library = library  # kept alive: its code runs in the workers
        self.lock = Turns()
        self._state = aligned(POOL_PARKED + LINE * threads, np.int64)
        self._start = _START(library.address("sparsify_start"))
        self._take_part = _TAKE_PART(library.address("sparsify_take_part"))
        self._serve = _SERVE(library.address("sparsify_serve"))
        self._dead: list[Job] = []
        self._workers = threads - 1
        self._patience = spins(threads)
        self._wake = [threading.Semaphore(0) for _ in range(self._workers)]
        for number in range(self._workers):
            threading.Thread(target=self._work, args=(number + 1,), daemon=True, name="sparsify").start()

    def _work(self, number: int) -> None:
        seen = 0
        while True:
            seen = self._serve(self._state.ctypes.data, number, seen, self._patience)
            self._wake[number - 1].acquire()

    def run(self, job: Job) -> None:
        """Run a job to its end. The caller holds `lock`."""
        parked = self._start(self._state.ctypes.data, job.address, self._workers)
        if parked:
            for number in range(self._workers):
                if parked >> number & 1:
                    self._wake[number].release()
            self._take_part(job.address, 0)
        if self._dead:
            self._bury()

    def forget(self, job: Job) -> None:
        """Keep a job's memory until no worker can be looking at it. Waits for nothing and takes no lock: the
        garbage collector may call this anywhere, in the middle of a run too."""
        self._dead.append(job)

    def _bury(self) -> None:
        """Free the memory of dead jobs, if no worker is in any job. The pool shows another job by now, so
        none can enter a dead one."""
        dead = len(self._dead)
        if not self._state[POOL_ACTIVE]:
            del self._dead[:dead]


@cache
def _pool(target: Target, threads: int) -> Pool:
    return Pool(library(target, runtime_ir), threads)


_POOLS_LOCK = threading.Lock()


def pool(target: Target, threads: int) -> Pool:
    """The pool of this size; sessions of the same size share it and take turns."""
    with _POOLS_LOCK:
        return _pool(target, threads)


def release_with(owner: object, threads: Pool, job: Job) -> None:
    """Forget `job` when `owner` goes."""
    weakref.finalize(owner, threads.forget, job).atexit = False


def _after_fork() -> None:
    global _POOLS_LOCK
    _POOLS_LOCK = threading.Lock()
    _pool.cache_clear()  # the threads stayed behind in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
