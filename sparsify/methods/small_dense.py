"""Small-dense: a narrower dense network of the sparse one's cost."""

from dataclasses import dataclass
from typing import Literal, final

from sparsify.methods import Method


@final
@dataclass(frozen=True)
class SmallDense(Method):
    """Trains densely at the width that gives the sparse network's cost (Evci et al. 2020, section 4.1).

    equal: "parameters", weights and biases together, or "flops" of a forward pass.
    """

    equal: Literal["parameters", "flops"] = "parameters"

    sparse = False
    equal_width = True
