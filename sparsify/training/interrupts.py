"""SIGINT and SIGTERM as a question that the loop asks between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts(patient: bool = False) -> Iterator[Callable[[], bool]]:
    """A function that tells whether the process was asked to stop.

    The first signal is only noted; a second one acts as it would have without us, unless we are `patient`:
    torchrun passes on the signal that a terminal has sent to us already. Outside the main thread, where
    Python allows no handlers, nothing is ever noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if patient:
            return
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for number in before:
            signal.signal(number, note)
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
