"""What tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparsify.training.step import TrainState
from tests.states import every_state


@pytest.fixture
def states() -> Iterator[list[TrainState]]:
    """Every state that a training passes through."""
    with every_state() as found:
        yield found
