"""A recipe's network with sparse layers, drawn as the masked one is and never dense where it is large."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsify.data import DataInfo
from sparsify.nn.convert import adopt_gates, sparse_kind, sparse_names
from sparsify.randomness import generator
from sparsify.recipe import Recipe
from sparsify.topology.costs import Layer
from sparsify.topology.densities import allocate_counts
from sparsify.topology.masks import Masks
from sparsify.topology.matrices import join
from sparsify.topology.positions import Positions
from sparsify.topology.select import random_positions
from sparsify.training.compute import with_sparse_layers
from sparsify.training.deferred import Deferred, Later, NotDeferred
from sparsify.training.snapshot import build_network, recipe_method
from sparsify.training.step import apply_masks
from sparsify.training.width import build_model, find_shapes


def build_sparse_network(recipe: Recipe, info: DataInfo) -> tuple[nn.Module, list[Layer], Masks]:
    """What `build_network` gives, with the layers sparse that gain by it.

    The recipe's method is one that sees single connections. Weights of up to `deferred.LARGE` entries are dense for a
    moment, and so are larger ones that a network starts in a way that cannot be followed part by part.
    """
    try:
        model, layers, masks = _build(recipe, info)
    except NotDeferred:
        model, layers, masks = build_network(recipe, info)
    return model, layers, with_sparse_layers(model, layers, masks, info.zeros())


def _build(recipe: Recipe, info: DataInfo) -> tuple[nn.Module, list[Layer], Masks]:
    topology, seed, draw = recipe.topology, recipe.training.seed, recipe_method(recipe).draw
    with torch.random.fork_rng(devices=[]), Deferred():
        torch.manual_seed(seed)
        model = build_model(recipe, info)
    if not any(isinstance(parameter, Later) for parameter in model.parameters()):
        raise NotDeferred("nothing is large")
    layers = find_shapes(recipe, info)
    counts = allocate_counts(topology.distribution, layers, topology.sparsity)
    matrices = [layer for layer in layers if layer.sparse and layer.parts == 1 and not layer.axis]
    fitting = {layer.name: counts[layer.name] for layer in matrices}
    with torch.device("meta"):  # what is called is found without computing anything
        names = sparse_names(build_model(recipe, info), fitting, info.zeros())
    random, tensors, positions = generator(seed, "masks"), {}, {}
    for layer in layers:
        if layer.name in names:
            positions[layer.name] = Positions(layer.shape, random_positions(layer.size, fitting[layer.name], random))
        elif layer.sparse:
            drawn = {part: draw(layer.matrix_shape, counts[part], random) for part in layer.matrices}
            tensors[layer.name] = join(layer, drawn)
    for name, held in positions.items():
        _replace(model, name, held)
    adopt_gates(model)
    for module in model.modules():
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if isinstance(tensor, Later):
                whole = tensor.whole()
                setattr(module, own, nn.Parameter(whole) if isinstance(tensor, nn.Parameter) else whole)
    turned = {layer.name: layer for layer in layers if layer.sparse and layer.axis}
    masks = Masks(tensors, turned, positions)
    apply_masks(model, masks)
    return model, layers, masks


def _replace(model: nn.Module, name: str, held: Positions) -> None:
    path = name.removesuffix(".weight")
    dense = model.get_submodule(path)
    kind, drawn = sparse_kind(dense), dense.weight
    assert kind is not None and isinstance(drawn, Tensor)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        layer = kind.like(dense, held.flat)
        values = drawn.entries(held.flat) if isinstance(drawn, Later) else drawn.flatten()[held.flat]
        layer.weight.copy_(values[torch.searchsorted(held.flat, layer.positions())])
    if layer.bias is not None:
        layer.bias = dense.bias  # type: ignore[assignment]
    model.set_submodule(path, layer.train(dense.training))
