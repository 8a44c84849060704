"""Static sparse training: random connections, chosen once."""

from typing import final

from sparsify.methods import Method


@final
class Static(Method):
    """The connections drawn at the start stay (the paper's baseline of that name)."""
