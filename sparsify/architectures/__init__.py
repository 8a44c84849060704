"""Networks. One file each, sized by arguments.

An architecture is one function `build(input_shape, classes, ...) -> nn.Module`; input_shape is [channels,
height, width] of a sample, and the other arguments are the keys of a recipe's [model] section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsify import registry

if TYPE_CHECKING:
    from torch import nn


def build(name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """The named architecture, freshly initialised from torch's global generator.

    Raises UnknownNameError for the name and RecipeError for an option.
    """
    module: Any = registry.load("architectures", name)
    model: nn.Module = registry.configure(module.build, "model", options, input_shape=input_shape, classes=classes)
    return model
