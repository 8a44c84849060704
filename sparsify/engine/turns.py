"""A lock that is handed on in the order of asking, so that a caller in a loop shuts nobody out."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A context manager, as threading.Lock is, which however goes to whoever is quickest to ask again."""

    def __init__(self) -> None:
        self._inside = threading.Lock()  # held for moments only
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()  # each is released when its turn has come

    def __enter__(self) -> None:
        with self._inside:
            if not self._is_taken:
                self._is_taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while waiting
            with self._inside:
                is_waiting = turn in self._waiting
                if is_waiting:
                    self._waiting.remove(turn)
            if not is_waiting:
                self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        with self._inside:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False
