"""Dense training: the yardstick."""

from typing import final

from sparsify.methods import Method


@final
class Dense(Method):
    """Every weight exists; sparsity and distribution have no effect."""

    sparse = False
