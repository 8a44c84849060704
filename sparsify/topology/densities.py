"""From the densities that a distribution asks for to the ones that a network can have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsify import registry
from sparsify.errors import SparsityError

Shapes = Mapping[str, tuple[int, ...]]


def scale_to_sparsity(raw: Mapping[str, float], shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Sparsity of each layer with density ε raw_l, such that the total is right.

    A layer whose density would pass 1 becomes dense, and ε is solved again for the rest, until none does.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = (1 - sparsity) * sum(sizes.values())  # weights that may exist
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        weight = sum(raw[name] * sizes[name] for name in rest)
        if not weight:
            return dict.fromkeys(shapes, 0.0)
        epsilon = (budget - sum(sizes[name] for name in dense)) / weight
        full = {name for name in rest if epsilon * raw[name] > 1}
        if not full:
            return {name: 0.0 if name in dense else 1 - epsilon * raw[name] for name in shapes}
        dense |= full


def allocate(distribution: str, shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Sparsity of each layer by the named distribution.

    shapes: [out, in, kernel...] by the weight's name, in order of use. sparsity: share of zeros, 0 <= s < 1.
    Raises SparsityError for a sparsity that no network can have, UnknownNameError for the distribution.
    """
    if not 0 <= sparsity < 1:
        raise SparsityError(_infeasible(shapes, sparsity))
    module: Any = registry.load("topology/distributions", distribution)
    if not sparsity:
        return dict.fromkeys(shapes, 0.0)
    result: dict[str, float] = module.allocate(shapes, sparsity)
    return result


def count_nonzeros(shape: tuple[int, ...], sparsity: float) -> int:
    """Weights that exist in a layer of this shape: n - floor(s n)."""
    size = math.prod(shape)
    return size - math.floor(sparsity * size)


def allocate_counts(distribution: str, shapes: Shapes, sparsity: float) -> dict[str, int]:
    """Weights of each layer that exist by the named distribution; see `allocate`."""
    shares = allocate(distribution, shapes, sparsity)
    return {name: count_nonzeros(shape, shares[name]) for name, shape in shapes.items()}


def _infeasible(shapes: Shapes, sparsity: float) -> str:
    total = sum(math.prod(shape) for shape in shapes.values())
    largest = 1 - len(shapes) / total if total else 0.0
    return (
        f"A sparsity of {sparsity} cannot be had: it is the share of weights that are zero. The largest that "
        f"leaves this network one weight a layer is {largest:.6f}. Give a sparsity from 0 to that."
    )
