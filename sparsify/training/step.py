"""One training step. This file alone orders mask update, optimizer step and reset of moments.

gradient of the whole batch
  update due and the method replaces the step:  masks <- update;  no gradient step
  otherwise:  gradients masked -> clipped -> optimizer step -> weights masked;  update if one is due
after an update: new weights and all their optimizer slots are 0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.methods import Connections, Method
from sparsify.randomness import generator
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.topology.select import drop_and_grow


@dataclass(frozen=True, eq=False)
class Topology:
    """What decides the connections during training, and does not change."""

    method: Method
    schedule: UpdateSchedule
    seed: int


@dataclass(frozen=True, eq=False)
class TrainState:
    """What a step changes. The model's and the optimizer's tensors are changed in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    masks: Masks
    step: int = 0  # steps done
    update_pending: bool = False  # an update was put off because its gradient was not finite
    updates: int = 0  # mask updates done
    grown: int = 0  # connections that they grew, over all layers


def finish_step(state: TrainState, topology: Topology, clip_norm: float | None = None) -> TrainState:
    """Turn the gradients that backward left in the model into the next state.

    Gradients are those of the loss over the whole batch, accumulated and unscaled, dense, not yet clipped.
    They are spent afterwards. clip_norm: largest norm of all gradients together, masked weights left out.
    """
    step, method = state.step + 1, topology.method
    due = method.updates_masks and (state.update_pending or topology.schedule.is_update_step(step))
    state = replace(state, step=step)
    if due and method.replaces_step:
        state = _update(state, topology) if _gradients_finite(state) else replace(state, update_pending=True)
    else:
        _gradient_step(state, clip_norm)
        if due:
            state = _update(state, topology)
    state.optimizer.zero_grad(set_to_none=True)
    return state


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every weight outside its mask to exactly 0."""
    with torch.no_grad():
        for weight, mask in _masked(model, masks):
            weight.mul_(mask)


def _gradient_step(state: TrainState, clip_norm: float | None) -> None:
    for weight, mask in _masked(state.model, state.masks):
        if weight.grad is not None:
            weight.grad.mul_(mask)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.optimizer.step()
    apply_masks(state.model, state.masks)


def _gradients_finite(state: TrainState) -> bool:
    gradients = [weight.grad for weight, _ in _masked(state.model, state.masks) if weight.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _update(state: TrainState, topology: Topology) -> TrainState:
    """Drop and grow in every layer, zero what is new or gone, and count."""
    fraction = topology.schedule.drop_fraction(state.step)
    random = generator(topology.seed, "growth", state.step)
    parameters = dict(state.model.named_parameters())
    updated, grown = {}, 0
    with torch.no_grad():
        for name, mask in state.masks.items():
            weight = parameters[name]
            layer = Connections(mask, weight, weight.grad, random)
            new = _update_layer(layer, topology.method, fraction)
            lasting = mask & new
            weight.masked_fill_(~lasting, 0)
            reset_slots(state.optimizer, weight, lasting)
            updated[name], grown = new, grown + int((new & ~mask).sum())
    return replace(
        state,
        masks=Masks(updated),
        update_pending=False,
        updates=state.updates + 1,
        grown=state.grown + grown,
    )


def _update_layer(layer: Connections, method: Method, fraction: float) -> Tensor:
    count = int(fraction * int(layer.mask.sum()))
    return drop_and_grow(layer.mask, method.drop_score(layer), method.grow_score(layer), count)


def reset_slots(optimizer: torch.optim.Optimizer, weight: Tensor, lasting: Tensor) -> None:
    """Zero the optimizer's slots of a weight where `lasting` is False, whatever the optimizer is.

    A slot is any tensor of the weight's shape in its state, inside lists and dictionaries too.
    """
    for slot in _tensors(optimizer.state.get(weight, {})):
        if slot.shape == weight.shape:
            slot.masked_fill_(~lasting, 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _masked(model: nn.Module, masks: Masks) -> Iterator[tuple[nn.Parameter, Tensor]]:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        yield parameters[name], mask
