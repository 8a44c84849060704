"""From the densities that a distribution asks for to the ones that a network can have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sparsify import registry
from sparsify.errors import SparsityError
from sparsify.topology.costs import Layer

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


def allocate(distribution: str, layers: Sequence[Layer], sparsity: float) -> dict[str, float]:
    """Sparsity of each matrix of the sparse layers by the named distribution (see `Layer.matrices`).

    layers: all layers of the network in order of use. sparsity: share of zeros, 0 <= s < 1, of the sparse layers
    together. One with a sparsity of its own is not counted in that, or, where it is inside, counted and made up for
    by the others. A grouped convolution counts as its groups, side by side: fan-in and fan-out are those of a group.
    Raises SparsityError for a sparsity that no network can have, UnknownNameError for the distribution.
    """
    taking_part = [layer for layer in layers if layer.sparse]
    if not 0 <= sparsity < 1:
        raise SparsityError(_infeasible(taking_part, sparsity))
    module: Any = registry.load("topology/distributions", distribution)
    if not sparsity:
        return {name: 0.0 for layer in taking_part for name in layer.matrices}
    free = [layer for layer in taking_part if layer.own is None]
    matrices = [(name, layer) for layer in free for name in layer.matrices]
    blocks = {f"{name} {group}": _block(layer) for name, layer in matrices for group in range(layer.groups)}
    shares = module.allocate(blocks, _rest(taking_part, sparsity))
    result = {name: shares[f"{name} 0"] for name, _ in matrices}  # one shape, so one share for all groups
    result |= {name: layer.own for layer in taking_part if layer.own is not None for name in layer.matrices}
    if getattr(module, "FIRST_DENSE", False) and layers[0] in free:
        result |= dict.fromkeys(layers[0].matrices, 0.0)
    return {name: result[name] for layer in taking_part for name in layer.matrices}


def _block(layer: Layer) -> tuple[int, ...]:
    """[out, in, kernel...] of one group of one part."""
    outputs, *rest = layer.matrix_shape
    return (outputs // layer.groups, *rest)


def _rest(layers: Sequence[Layer], sparsity: float) -> float:
    """Sparsity of the layers without one of their own. Raises SparsityError where these cannot make up for others."""
    size = sum(layer.size for layer in layers if layer.own is None)
    inside = [(layer.size, layer.own) for layer in layers if layer.own is not None and layer.inside]
    whole, zeros = size + sum(n for n, _ in inside), sum(n * own for n, own in inside)
    if not inside or not size:
        return sparsity
    rest = (sparsity * whole - zeros) / size
    if not 0 <= rest < 1:
        raise SparsityError(
            f"[topology.layers] leaves no way to a sparsity of {sparsity}: with the layers that have one of their own "
            f"inside the budget, totals from {zeros / whole:.6f} to below {(zeros + size) / whole:.6f} can be "
            f'had. Change topology.sparsity, or set budget = "outside" for some of them.'
        )
    return rest


def count_nonzeros(shape: tuple[int, ...], sparsity: float) -> int:
    """Weights that exist in a layer of this shape: n - floor(s n)."""
    size = math.prod(shape)
    return size - math.floor(sparsity * size)


def allocate_counts(distribution: str, layers: Sequence[Layer], sparsity: float) -> dict[str, int]:
    """Weights of each matrix that exist by the named distribution; see `allocate`."""
    shares = allocate(distribution, layers, sparsity)
    sizes = {name: layer.matrix_shape for layer in layers if layer.sparse for name in layer.matrices}
    return {name: count_nonzeros(sizes[name], share) for name, share in shares.items()}


def _infeasible(layers: Sequence[Layer], sparsity: float) -> str:
    total, count = sum(layer.size for layer in layers), sum(layer.parts for layer in layers)
    largest = 1 - count / total if total else 0.0
    return (
        f"A sparsity of {sparsity} cannot be had: it is the share of weights that are zero. The largest that "
        f"leaves this network one weight a layer is {largest:.6f}. Give a sparsity from 0 to that."
    )
