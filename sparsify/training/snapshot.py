"""From a network in training to a model as a file holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sparsify import __version__
from sparsify.data import DataInfo, data_info
from sparsify.errors import DivergedError
from sparsify.formats import Metadata, SparseModel
from sparsify.formats._bits import spread
from sparsify.formats._metadata import LayerMetadata, Network
from sparsify.methods import Method
from sparsify.nn import sparse_layers
from sparsify.nn.layer import positions_key
from sparsify.randomness import generator
from sparsify.recipe import Recipe
from sparsify.registry import configure, load_class
from sparsify.topology.costs import Layer, inference_flops
from sparsify.topology.layers import find_layers
from sparsify.topology.masks import Masks, random_masks
from sparsify.topology.tying import tensor_owners
from sparsify.training.step import apply_masks
from sparsify.training.width import build_model, equal_width

Origin = Literal["trained", "in training", "initialised"]


def load_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """The named method with its options. Raises RecipeError for an option that it does not have."""
    return configure(load_class("methods", name, Method), "topology.options", options or {})


def recipe_method(recipe: Recipe) -> Method:
    """The method that a recipe names, with the recipe's options."""
    return load_method(recipe.topology.method, recipe.topology.options)


def build_network(
    recipe: Recipe, info: DataInfo, sparsity: float | None = None, own: nn.Module | None = None
) -> tuple[nn.Module, list[Layer], Masks]:
    """A recipe's network, initialised from the seed and masked; or `own`, as it is, masked.

    sparsity: by default the one that the method starts with, so that this is the network before the first step.
    """
    method = recipe_method(recipe)
    recipe = equal_width(recipe, info, method)
    topology = recipe.topology
    seed = recipe.training.seed
    if sparsity is None:
        sparsity = method.initial_sparsity(topology.sparsity)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = own if own is not None else build_model(recipe, info)
    layers = find_layers(model, info.zeros(), topology.layers)
    masks = random_masks(layers, topology.distribution, sparsity, generator(seed, "masks"), method.draw)
    apply_masks(model, masks)
    return model, layers, masks


def initial_snapshot(recipe: Recipe) -> SparseModel:
    """The model of a recipe that was never trained, as sparse as training would leave it; its metadata says so."""
    info = data_info(recipe.data.name, recipe.data.options)
    sparsity = recipe.topology.sparsity if recipe_method(recipe).sparse else 0.0
    model, layers, masks = build_network(recipe, info, sparsity)
    return snapshot(model, layers, masks, recipe, info, "initialised")


def snapshot(
    model: nn.Module,
    layers: list[Layer],
    masks: Masks,
    recipe: Recipe,
    info: DataInfo,
    origin: Origin,
    training: Mapping[str, Any] | None = None,
) -> SparseModel:
    """The model with its metadata. Weights outside their mask are +0.0, never -0.0.

    Raises DivergedError where a weight is not finite: such a model is of no use in a file.
    """
    state = model.state_dict()
    owned = [name for name, owner in tensor_owners(model).items() if name == owner]
    sparse = sparse_layers(model)
    for name in sparse:
        owned.remove(positions_key(name))
    tensors: dict[str, Any] = {name: state[name].detach().cpu().numpy().copy() for name in owned}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise DivergedError(f"The tensor {name} holds values that are not finite: training diverged.")
    live_zeros = {}
    for name, mask in masks.items():
        mask_array = mask.cpu().numpy()
        tensors[name] = np.where(mask_array, tensors[name], np.float32(0))
        zeros = np.flatnonzero(mask_array & (tensors[name] == 0))
        if zeros.size:
            live_zeros[name] = zeros.tolist()
    for name, layer in sparse.items():
        flat, order = layer.positions().sort()
        values, tensors[name] = tensors[name][order.numpy()], None
        tensors[name] = spread(values, flat.numpy(), layer.pattern.shape)
        if (values == 0).any():
            live_zeros[name] = flat.numpy()[values == 0].tolist()
    nonzeros = masks.nonzeros()
    metadata = Metadata(
        producer=f"sparsify {__version__}",
        origin=origin,
        network=_network(recipe, info),
        method=recipe.topology.method,
        distribution=recipe.topology.distribution,
        target_sparsity=recipe.topology.sparsity,
        sparsity=masks.sparsity(),
        flops=inference_flops(layers, nonzeros),
        dense_flops=inference_flops(layers, {}),
        layers={layer.name: _layer(layer, nonzeros.get(layer.name, layer.size)) for layer in layers},
        mask_digest=masks.digest(),
        live_zeros=live_zeros,
        training=dict(training or {}),
    )
    return SparseModel(tensors, layers, metadata)


def _network(recipe: Recipe, info: DataInfo) -> Network:
    recipe = equal_width(recipe, info, recipe_method(recipe))  # the file's network is the one that was trained
    return Network(
        recipe=recipe.model_dump(exclude_none=True),
        input_shape=list(info.input_shape),
        classes=info.classes,
        mean=list(info.mean),
        std=list(info.std),
        vocabulary=info.vocabulary,
    )


def _layer(layer: Layer, nonzeros: int) -> LayerMetadata:
    return LayerMetadata(
        shape=list(layer.shape),
        positions=layer.positions,
        sparse=layer.sparse,
        axis=layer.axis,
        groups=layer.groups,
        parts=layer.parts,
        own=layer.own,
        inside=layer.inside,
        nonzeros=nonzeros,
        sparsity=1 - nonzeros / layer.size,
    )
