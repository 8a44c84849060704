"""Watching what a training passes through, for tests that compare two of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sparsify.training import loop
from sparsify.training.step import TrainState


@contextmanager
def every_state() -> Iterator[list[TrainState]]:
    """Every state that trainings pass through inside; its masks stay as they were, its model goes on."""
    found: list[TrainState] = []
    finish = loop.finish_step

    def watched(*arguments: object) -> TrainState:
        found.append(finish(*arguments))  # type: ignore[arg-type]
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finish_step", watched)
        yield found
