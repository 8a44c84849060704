"""Work on several cores, results in order, memory bounded. numpy releases the interpreter's lock for all of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
MEMORY = 1 << 27  # bytes of tensors that may be under way beside the first


def in_order(function: Callable[[T], R], items: Iterable[T], cost: Callable[[T], int]) -> Iterator[R]:
    """Results of `function` in the order of the items, some of them computed ahead.

    cost: bytes an item takes while it is under way; a large item is worked on alone.
    """
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[tuple[int, Future[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            bytes_ = cost(item)
            while waiting and (len(waiting) > workers or sum(c for c, _ in waiting) + bytes_ > MEMORY):
                yield waiting.popleft()[1].result()
            waiting.append((bytes_, pool.submit(function, item)))
        while waiting:
            yield waiting.popleft()[1].result()
