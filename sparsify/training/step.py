"""One training step. This file alone orders mask update, optimizer step and reset of moments.

gradient of the whole batch, the same on every rank, not yet clipped
  unscaled -> looked at: one that is not finite changes nothing, and puts an update that is due off
  update due and the method replaces the step:  masks <- update;  no gradient step
  otherwise:  gradients masked -> clipped -> optimizer step -> weights masked;  update if one is due
after an update: new weights and all their optimizer slots are 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sparsify.methods import Memory, Method
from sparsify.nn import sparse_layers
from sparsify.nn.growth import Rewiring
from sparsify.randomness import generator
from sparsify.topology.connections import Connections, Moment, Network
from sparsify.topology.costs import Layer, inference_flops, plain_layers, step_flops
from sparsify.topology.explored import Explored
from sparsify.topology.masks import Masks
from sparsify.topology.matrices import join, split
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.averaging import Average, clear_average, update_average
from sparsify.training.dense_gradients import Gradients, added, dense_gradients, gather_sparse, running_mean
from sparsify.training.optimizer import shrink_weights
from sparsify.training.precision import LossScale, gradients_finite, unscale
from sparsify.training.rewiring import move_values, update_in_order
from sparsify.training.slots import reset_slots


@dataclass(frozen=True, eq=False)
class Topology:
    """What decides the connections during training, and does not change."""

    method: Method
    schedule: UpdateSchedule
    seed: int
    initial: Mapping[str, int] = field(default_factory=dict)  # connections of each layer before training
    final: Mapping[str, int] = field(default_factory=dict)  # connections allocated at the target sparsity
    layers: tuple[Layer, ...] = ()  # of the whole network, to count its FLOPs


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
    churn: float = 0.0  # share of the connections that the last update took away
    flops: int = 0  # of training so far, for one sample of each batch
    memory: Memory = field(default_factory=dict)  # the method's own
    explored: Explored | None = None  # weights that existed at any time; None before the first update
    momentum: Gradients = field(default_factory=dict)  # running mean of dense gradients, for methods that keep one
    gathered: Gradients = field(default_factory=dict)  # sum of dense gradients that the next update will look at
    average: Average = field(default_factory=dict)  # of the weights, where one is kept
    loss_scale: LossScale | None = None  # the factor on the loss that the gradients stem from
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)  # the model's, looked up once

    def __post_init__(self) -> None:
        if not self.parameters:
            object.__setattr__(self, "parameters", dict(self.model.named_parameters()))


def record_gradients(state: TrainState, topology: Topology) -> None:
    """Before the forward pass: let sparse layers keep what an update makes dense gradients of."""
    if _gathers(state, topology):
        for layer in sparse_layers(state.model).values():
            layer.tape = []


def finish_step(
    state: TrainState, topology: Topology, clip_norm: float | None = None, average_decay: float | None = None
) -> TrainState:
    """Turn the gradients that backward left in the model into the next state.

    Gradients are those of the (scaled) loss over the whole batch, accumulated and reduced over ranks, dense,
    not yet clipped. They are spent afterwards. clip_norm: largest norm of all gradients together, masked
    weights left out. average_decay: of the moving average of the weights, None for none.
    """
    half = prepare_step(state, topology)
    if half.descends:
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
        shrink_weights(state.optimizer)
        state.optimizer.step()
    return complete_step(half, topology, average_decay)


@dataclass(frozen=True, eq=False)
class HalfStep:
    """A step whose gradients are ready for the optimizer, which somebody calls before `complete_step`."""

    state: TrainState
    due: bool  # the masks are updated when the step is completed
    descends: bool  # the optimizer has gradients; where it has none, calling it changes nothing
    gradients: Gradients = field(default_factory=dict)  # dense, for the update


def prepare_step(state: TrainState, topology: Topology) -> HalfStep:
    """The first half of `finish_step`: gradients are looked at, kept where an update needs them, and masked.

    Where the step has no gradient step they are taken away, so that an optimizer passes over all parameters.
    """
    step, method = state.step + 1, topology.method
    due = _is_due(state, topology)
    gathers = _gathers(state, topology)
    dense = bool(method.momentum) or gathers
    state = replace(state, step=step, flops=state.flops + _flops(state, topology, dense))
    state, finite = _unscale(state, look=due or dense)
    if not finite:
        state.optimizer.zero_grad(set_to_none=True)
        return HalfStep(replace(state, update_pending=due), due=False, descends=False)
    gradients = dense_gradients(state.parameters, state.masks) if dense else {}
    if method.momentum:
        state = replace(state, momentum=running_mean(state.momentum, gradients, method.momentum))
    if gathers:
        gradients = added(gradients, state.gathered)
    if gathers and not due:
        state = replace(state, gathered={**gradients, **gather_sparse(sparse_layers(state.model), state.gathered)})
    descends = not (due and method.replaces_step)
    if descends:
        multiply([(weight.grad, mask) for weight, mask in _masked(state) if weight.grad is not None])
    else:
        state.optimizer.zero_grad(set_to_none=True)
    return HalfStep(state, due, descends, gradients)


def complete_step(half: HalfStep, topology: Topology, average_decay: float | None = None) -> TrainState:
    """The second half of `finish_step`, after the optimizer: weights are masked, and masks updated if that is due."""
    state = half.state
    if half.descends:
        multiply(_masked(state))
    if half.due:
        state = _update(state, topology, half.gradients)
    state.optimizer.zero_grad(set_to_none=True)
    for sparse in sparse_layers(state.model).values():
        sparse.tape = None
    if average_decay is not None:
        state = replace(state, average=update_average(state.average, state.model, average_decay, state.step))
    return state


def start_by_gradient(state: TrainState, topology: Topology) -> TrainState:
    """The one update before training, by the dense gradient of the first batch.

    A gradient that is not finite leaves the masks as they are, so that the caller can try again with the
    smaller loss scale.
    """
    dense = 3 * inference_flops(topology.layers, {})
    state, finite = _unscale(replace(state, flops=state.flops + dense), look=True)
    if finite:
        state = _update(state, topology, dense_gradients(state.parameters, state.masks))
    state.optimizer.zero_grad(set_to_none=True)
    return replace(state, update_pending=not finite)


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every weight outside its mask to exactly 0."""
    parameters = dict(model.named_parameters())
    multiply([(parameters[name], mask) for name, mask in masks.items()])


def multiply(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Multiply each first tensor by the second, in place, all in one launch where the device can."""
    if pairs:
        with torch.no_grad():
            torch._foreach_mul_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])


def _is_due(state: TrainState, topology: Topology) -> bool:
    """Whether the step after `state` updates the masks."""
    if not topology.method.updates_masks:
        return False
    return state.update_pending or topology.schedule.is_update_step(state.step + 1)


def _gathers(state: TrainState, topology: Topology) -> bool:
    """Whether an update looks at the dense gradients of the step after `state`, now or later."""
    method, schedule = topology.method, topology.schedule
    if not (method.updates_masks and method.needs_dense_gradients):
        return False
    return _is_due(state, topology) or (not method.momentum and schedule.counts_for_growth(state.step + 1))


def _flops(state: TrainState, topology: Topology, dense: bool) -> int:
    sparse = inference_flops(topology.layers, state.masks.nonzeros())
    return step_flops(sparse, inference_flops(topology.layers, {}) if dense else sparse)


def _unscale(state: TrainState, look: bool) -> tuple[TrainState, bool]:
    """Gradients of the plain loss, the next loss scale, and whether the gradients are finite.

    Looking makes the device wait, so unless the loss is scaled it is done only where `look` asks for it.
    """
    scale = state.loss_scale
    unscale(state.model.parameters(), scale)
    finite = True
    if look or scale is not None:
        kept = [pair for layer in sparse_layers(state.model).values() for pair in layer.tape or ()]
        finite = gradients_finite(state.model.parameters())
        # What is kept is large: a sum makes nothing of its size.
        finite = finite and all(bool(tensor.sum().isfinite()) for pair in kept for tensor in pair)
    return replace(state, loss_scale=scale and scale.after(finite)), finite


def _update(state: TrainState, topology: Topology, gradients: Gradients) -> TrainState:
    """Let the method choose, zero what is new or gone, and count."""
    random = generator(topology.seed, "growth", state.step)
    network, layers = _network(state, topology, gradients, random), _layers(state, topology)
    schedule, method = topology.schedule, topology.method
    moment = Moment(schedule.drop_fraction(state.step), schedule.progress(state.step))
    rewired: dict[str, Rewiring] = {}
    with torch.no_grad():
        if state.masks.positions:
            listed = plain_layers({name: layer.shape for name, layer in state.masks.positions.items()})
            sparse = sparse_layers(state.model)
            chosen, rewired = update_in_order(
                topology.layers or listed, method, network, sparse, state.gathered, moment, random
            )
            move_values(state.optimizer, sparse, rewired)
            memory = state.memory
        else:
            chosen, memory = method.update(network, moment, state.memory or method.memory()) if network else ({}, {})
        positions = {name: change.positions for name, change in rewired.items()}
        tensors = {layer.name: join(layer, chosen) for layer in layers}
        masks = replace(state.masks, tensors=tensors, positions=positions)
        for name, mask in masks.items():
            lasting, weight = state.masks[name] & mask, state.parameters[name]
            weight.masked_fill_(~lasting, 0)
            reset_slots(state.optimizer, weight, lasting)
            clear_average(state.average, name, lasting)
    kept = sum(int((mask & state.masks[name]).sum()) for name, mask in masks.items())
    kept += sum(change.lasting for change in rewired.values())
    before, after = (sum(m.nonzeros().values()) for m in (state.masks, masks))
    return replace(
        state,
        masks=masks,
        update_pending=False,
        updates=state.updates + 1,
        grown=state.grown + after - kept,
        churn=1 - kept / before if before else 0.0,
        memory=memory,
        gathered={},
        explored=(state.explored or Explored.of(state.masks)).including(masks),
    )


def _network(state: TrainState, topology: Topology, gradients: Gradients, random: torch.Generator) -> Network:
    """The matrices of the network, each as [out, in, kernel...]."""
    found: dict[str, Connections] = {}
    for layer in _layers(state, topology):
        name = layer.name
        held = (gradients.get(name), state.momentum.get(name))
        gradient, momentum = (split(layer, tensor) if tensor is not None else {} for tensor in held)
        weight = split(layer, state.parameters[name])
        for part, mask in split(layer, state.masks[name]).items():
            count = int(mask.sum())
            found[part] = Connections(
                mask=mask,
                weight=weight[part],
                gradient=gradient.get(part),
                generator=random,
                momentum=momentum.get(part),
                initial=topology.initial.get(part, count),
                final=topology.final.get(part, count),
            )
    return Network(found)


def _layers(state: TrainState, topology: Topology) -> list[Layer]:
    """The layers with a mask, in the order of the masks."""
    known = {layer.name: layer for layer in topology.layers}
    return [known.get(name) or Layer(name, tuple(mask.shape), 0) for name, mask in state.masks.items()]


def _masked(state: TrainState) -> list[tuple[nn.Parameter, Tensor]]:
    """The weights that have zeros, and 1 where they have none."""
    factors = state.masks.factors(state.parameters)
    return [(state.parameters[name], factor) for name, factor in factors.items()]
