"""Masked or sparse: how a run computes with its zeros, and a checkpoint's tensors in either form.

A masked layer is a dense weight and a bool mask; a sparse one is values and positions. Slots have the weight's shape
in both. Which form a run takes decides what it costs and not what it is, so it is no part of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.errors import RecipeError
from sparsify.methods import Method
from sparsify.nn import sparse_layers, to_sparse
from sparsify.nn.layer import positions_key
from sparsify.recipe import Recipe
from sparsify.topology.costs import Layer
from sparsify.topology.explored import as_listed, as_mask
from sparsify.topology.masks import Masks
from sparsify.topology.positions import Positions
from sparsify.training.distributed import World

Compute = Literal["masked", "sparse"]


def check_compute(recipe: Recipe, method: Method, world: World) -> None:
    """Raises RecipeError where a recipe cannot be trained sparse."""
    settings, reason = recipe.training, ""
    if not method.sees_single_connections:
        reason = (
            f"the method {recipe.topology.method} looks at more than single connections, such as dense gradients of "
            f"every step or whole layers, and would need tensors of the dense weights' size"
        )
    elif world.device.type != "cpu" or world.size > 1:
        reason = "it runs on the CPU, in one process"
    elif settings.precision != "float32":
        reason = f"it computes in float32, and training.precision is {settings.precision}"
    elif settings.compile or settings.ema is not None:
        reason = f"training.{'compile' if settings.compile else 'ema'} does not know sparse parameters"
    if reason:
        raise RecipeError(f"--compute sparse is not possible here: {reason}. Change that, or use --compute masked.")


def with_sparse_layers(model: nn.Module, layers: Iterable[Layer], masks: Masks, sample: Tensor) -> Masks:
    """Make the layers sparse that gain by it, in place; returns the masks with their positions."""
    held = {layer.name for layer in layers if not layer.axis}
    whole = {name: mask for name, mask in masks.items() if name in held}
    done = to_sparse(model, whole, sample)
    positions = {name: Positions(tuple(masks[name].shape), masks[name].flatten().nonzero().squeeze(1)) for name in done}
    tensors = {name: mask for name, mask in masks.items() if name not in done}
    return replace(masks, tensors=tensors, positions={**masks.positions, **positions})


def positions_of(model: nn.Module) -> dict[str, Positions]:
    """Where the connections of the sparse layers are."""
    layers = sparse_layers(model).items()
    return {name: Positions(layer.pattern.shape, layer.positions().sort().values) for name, layer in layers}


def fitted(
    content: Mapping[str, Any], model: nn.Module, masks: Masks, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """A checkpoint's content with every layer in the form that it has in `model`, whichever it was saved in.

    masks: of the layers that are masked in the model. Slots are brought into form where there is an optimizer.
    """
    saved, listed = dict(content["model"]), set(content.get("sparse", ()))
    kept = {name: mask for name, mask in content["masks"].items() if name in masks}
    indices = _indices(model, optimizer) if optimizer is not None else {}
    for name, layer in sparse_layers(model).items():
        key = positions_key(name)
        if name in listed:
            flat, order = saved[key].sort()
        else:
            flat = order = content["masks"][name].flatten().nonzero().squeeze(1)
        if len(flat) != layer.pattern.count:
            continue  # another recipe's: loading the model will say so
        order = order[torch.from_numpy(layer.arrange(flat.numpy())[1])]
        full = saved[name].shape
        saved[key] = saved[key][order] if name in listed else order
        for holder, entry in [(saved, name), *_slots(content, indices.get(name))]:
            if holder[entry].shape == full:
                holder[entry] = holder[entry].flatten()[order]
    for name in listed & set(masks):
        flat, short, shape = saved.pop(positions_key(name)), saved[name].shape, masks[name].shape
        for holder, entry in [(saved, name), *_slots(content, indices.get(name))]:
            if holder[entry].shape == short:
                holder[entry] = _spread(holder[entry], flat, shape)
        kept[name] = _spread(torch.ones(short, dtype=torch.bool), flat, shape)
    explored = content["explored"]
    if explored is not None:
        in_full = {name: as_mask(explored[name], mask.shape) for name, mask in masks.items()}
        explored = in_full | {name: as_listed(explored[name]) for name in sparse_layers(model)}
    return {**content, "model": saved, "masks": {name: kept[name] for name in masks}, "explored": explored}


def _spread(values: Tensor, flat: Tensor, shape: torch.Size) -> Tensor:
    return values.new_zeros(shape.numel()).index_copy_(0, flat, values).view(shape)


def _indices(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """The number that the optimizer's state knows each parameter by."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[id(parameter)]: index for index, parameter in enumerate(ordered)}


def _slots(content: Mapping[str, Any], index: int | None) -> list[tuple[Any, Any]]:
    """Each tensor in one parameter's state as (container, key), containers within containers too."""
    return list(_entries(content["optimizer"]["state"].get(index, {})))


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, Tensor):
            yield value, key
        elif isinstance(item, (dict, list)):
            yield from _entries(item)
