"""Networks. One file each, sized by arguments.

An architecture is one function `build(input_shape, classes, ...) -> nn.Module`; input_shape is [channels,
height, width] of a sample, and the other arguments are the keys of a recipe's [model] section. One whose samples
are sequences of tokens has an argument `vocabulary` besides, and its input_shape is [length].
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

from sparsify import registry
from sparsify.errors import RecipeError
from sparsify.references import import_reference, is_reference

if TYPE_CHECKING:
    from torch import nn


def build(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], classes: int, vocabulary: int = 0
) -> nn.Module:
    """The named architecture, freshly initialised from torch's global generator.

    vocabulary: distinct tokens, where samples are sequences of them. Raises UnknownNameError for the name and
    RecipeError for an option, or for data that this architecture cannot take.
    """
    given: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    if is_reference(name):
        return _build_own(name, options, given | {"vocabulary": vocabulary})
    module: Any = registry.load("architectures", name)
    if reads_tokens(name) != bool(vocabulary):
        known = [other for other in registry.names("architectures") if reads_tokens(other) == bool(vocabulary)]
        raise RecipeError(
            f"The data holds {'sequences of tokens' if vocabulary else f'samples of shape {list(input_shape)}'}, which "
            f"the architecture {name} does not take. Choose another data set, or one of: {', '.join(known)}."
        )
    if vocabulary:
        given["vocabulary"] = vocabulary
    model: nn.Module = registry.configure(module.build, "model", options, **given)
    return model


def _build_own(reference: str, options: Mapping[str, Any], given: dict[str, Any]) -> nn.Module:
    """The network that a user's own function builds; it gets those of the data's sizes that it has arguments for."""
    from torch import nn

    function = import_reference(reference)
    wanted = {key: value for key, value in given.items() if key in signature(function).parameters}
    if "classes" in wanted and not wanted["classes"]:
        raise RecipeError(f"{reference} asks for the number of classes, which the data set does not tell.")
    model = registry.configure(function, "model", options, **wanted)
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{reference} has to return a torch.nn.Module and returned a {type(model).__name__}.")
    return model


def reads_tokens(name: str) -> bool:
    """Whether the named architecture reads sequences of tokens, [n, t] int64, and answers for each position."""
    return "vocabulary" in signature(registry.load("architectures", name).build).parameters
