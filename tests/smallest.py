"""Every architecture at the least size that it can have, for tests of what must hold for all of them."""

from inspect import signature

import torch

from sparsify import registry
from sparsify.architectures import build, reads_tokens
from sparsify.errors import RecipeError

SIDE, CLASSES, LENGTH = 32, 3, 16
WIDTH = 0.125


def options(name: str) -> dict[str, float]:
    """Options of the named architecture."""
    return {"width_multiplier": WIDTH, **depth(name)}


def data_of(name: str) -> tuple[tuple[int, ...], int, int]:
    """Shape of a sample, classes and vocabulary (0 where samples are images), as `build` takes them."""
    return ((LENGTH,), 256, 256) if reads_tokens(name) else ((3, SIDE, SIDE), CLASSES, 0)


def depth(name: str) -> dict[str, int]:
    """The least depth that an architecture can have, where it has one."""
    if "depth" not in signature(registry.load("architectures", name).build).parameters:
        return {}
    for number in range(1, 50):
        try:
            with torch.device("meta"):
                build(name, {"depth": number}, *data_of(name))
        except RecipeError:
            continue
        return {"depth": number}
    raise AssertionError(f"no depth of {name} can be built")
