"""The width at which a dense network costs what a sparse one does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from sparsify import architectures, registry
from sparsify.data import DataInfo
from sparsify.errors import RecipeError
from sparsify.methods import Method
from sparsify.recipe import Recipe
from sparsify.references import is_reference
from sparsify.topology.costs import Layer, inference_flops
from sparsify.topology.densities import allocate_counts
from sparsify.topology.layers import find_layers
from sparsify.topology.matrices import weight_counts

KEY = "width_multiplier"  # of an architecture: a factor on the channels or neurons of every hidden layer
HALVINGS = 14  # of the interval from 0 to the recipe's own width; what is narrower still has one neuron a layer


def equal_width(recipe: Recipe, info: DataInfo, method: Method) -> Recipe:
    """The recipe, its network narrowed to the cost of the sparse one where the method trains at equal width.

    Raises RecipeError where the architecture has no width, or no width is narrow enough.
    """
    if not method.equal_width:
        return recipe
    if (
        is_reference(recipe.model.name)
        or KEY not in inspect.signature(registry.load("architectures", recipe.model.name).build).parameters
    ):
        raise RecipeError(
            f"The architecture {recipe.model.name} has no {KEY}, so it cannot be narrowed to equal cost. "
            f"Choose another method or architecture."
        )
    full = find_shapes(recipe, info)
    topology = recipe.topology
    counts = weight_counts(full, allocate_counts(topology.distribution, full, topology.sparsity))
    budget = _cost(full, counts, method)
    narrow, wide = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (narrow + wide) / 2
        fits = _cost(find_shapes(_at_width(recipe, middle), info), {}, method) <= budget
        narrow, wide = (middle, wide) if fits else (narrow, middle)
    if not narrow:
        raise RecipeError(
            f"No width of {recipe.model.name} is as cheap in {method.equal} as the network at "
            f"{topology.sparsity:.2%} sparsity. Lower topology.sparsity."
        )
    return _at_width(recipe, 1.0 if not topology.sparsity else narrow)


def find_shapes(recipe: Recipe, info: DataInfo) -> list[Layer]:
    """The layers of a recipe's network, found without computing anything or drawing a weight."""
    with torch.device("meta"):
        return find_layers(build_model(recipe, info), info.zeros(), recipe.topology.layers)


def build_model(recipe: Recipe, info: DataInfo) -> nn.Module:
    """The recipe's network for a data set, dense, drawn from torch's global generator."""
    part = recipe.model
    return architectures.build(part.name, part.options, info.input_shape, info.classes, info.vocabulary)


def _cost(layers: list[Layer], nonzeros: Mapping[str, int], method: Method) -> int:
    if method.equal == "flops":
        return inference_flops(layers, nonzeros)
    return sum(nonzeros.get(layer.name, layer.size) + layer.outputs for layer in layers)


def _at_width(recipe: Recipe, multiplier: float) -> Recipe:
    options = {**recipe.model.options}
    options[KEY] = options.get(KEY, 1.0) * multiplier
    model = type(recipe.model)(name=recipe.model.name, **options)
    return recipe.model_copy(update={"model": model})
