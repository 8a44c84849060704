"""Callers that wait get in, in the order in which they came."""

import threading
import time

import pytest

from sparsify.engine.turns import Turns


def started(turns, function, waiting):
    thread = threading.Thread(target=function)
    thread.start()
    while len(turns._waiting) < waiting:
        time.sleep(0.001)
    return thread


def test_first_come_first_served():
    turns, order = Turns(), []

    def enter(name):
        with turns:
            order.append(name)

    with turns:
        threads = [started(turns, lambda name=name: enter(name), i + 1) for i, name in enumerate("bcd")]
    enter("a")  # at once, and yet behind those who wait
    for thread in threads:
        thread.join()
    assert order == ["b", "c", "d", "a"]


def test_an_error_inside_hands_the_turn_on():
    turns = Turns()
    with pytest.raises(ValueError), turns:
        raise ValueError
    with turns:
        pass


def test_many_callers_lose_no_turn():
    turns, total = Turns(), [0]

    def count():
        for _ in range(500):
            with turns:
                seen = total[0]
                total[0] = seen + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [2000]
    assert not turns._waiting and not turns._is_taken
