"""Sparse training in a loop of the user's own: one call a step in the place of `optimizer.step()`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sparsify.errors import CheckpointError, RecipeError
from sparsify.randomness import generator
from sparsify.recipe import parse_topology
from sparsify.topology.layers import find_layers
from sparsify.topology.masks import Masks, random_masks
from sparsify.training.checkpoint import sparse_state, with_sparse_state
from sparsify.training.distributed import World
from sparsify.training.snapshot import load_method
from sparsify.training.start import plan_topology
from sparsify.training.step import (
    HalfStep,
    TrainState,
    apply_masks,
    complete_step,
    finish_step,
    prepare_step,
    start_by_gradient,
)


class SparseOptimizer:
    """A model and its optimizer, trained sparse.

        sparse = SparseOptimizer(model, optimizer, sample, steps=1000, sparsity=0.9)
        ...
        loss.backward()
        sparse.step()  # in the place of optimizer.step()

    sample: input of the model, as in `topology.layers.find_layers`. steps: how many there will be, for the schedule.
    clip_norm: largest norm of all gradients together; to clip here leaves growth the gradients as they were.
    state: what `state_dict` gave, where a model that was loaded already goes on; one that is loaded after this may go
    on by `load_state_dict`. settings: keys of a recipe's [topology], such as method, distribution, sparsity, delta_t
    and layers.

    The weights are masked from now on. Gradients may be accumulated over several backward passes, reduced by
    DistributedDataParallel, and scaled: `scaler.step(sparse)` and, to clip, `scaler.unscale_(sparse)` take it for an
    optimizer. Learning rate schedulers get the optimizer itself. Raises RecipeError for settings that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sample: Any,
        *,
        steps: int,
        seed: int = 0,
        clip_norm: float | None = None,
        state: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        plain, topology = unwrapped(model), parse_topology(settings)
        method = load_method(topology.method, topology.options)
        if method.equal_width:
            raise RecipeError(f"The method {topology.method} builds a network of its own, so it needs a recipe.")
        layers = find_layers(plain, sample, topology.layers)
        place = next(plain.parameters()).device
        start = method.initial_sparsity(topology.sparsity)
        masks = random_masks(layers, topology.distribution, start, generator(seed, "masks"), method.draw)
        self.layers = tuple(layers)
        self.topology = plan_topology(topology, steps, seed, layers, masks)
        self.state = TrainState(plain, optimizer, masks.to(place))
        self.clip_norm = clip_norm
        self._world = _world(place)
        self._half: HalfStep | None = None
        if state is not None:
            self._restore(state)
        apply_masks(plain, self.masks)
        self._world.check_masks(self.masks, self.state.step)

    @property
    def masks(self) -> Masks:
        """Where connections exist, by the weight's name."""
        return self.state.masks

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.state.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer does it; after `step` there are no gradients left anyway."""
        self.state.optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Spend the gradients: on a step of the optimizer, or on new connections where these are due.

        Raises DistributedError, on every rank, where the ranks no longer hold the same masks.
        """
        if self._starts():
            self._advance(start_by_gradient(self.state, self.topology))
        else:
            self._advance(finish_step(self.state, self.topology, self.clip_norm))

    def prepare(self) -> None:
        """The part of `step` before the optimizer's, for frameworks that call `optimizer.step()` themselves.

        Where the gradients are spent on connections there are none left, and the optimizer passes over all weights.
        """
        if self._starts():
            self._advance(start_by_gradient(self.state, self.topology))
        else:
            self._half = prepare_step(self.state, self.topology)

    def complete(self) -> None:
        """The part of `step` after the optimizer's; nothing without a `prepare` before it."""
        half, self._half = self._half, None
        if half is not None:
            self._advance(complete_step(half, self.topology))

    def state_dict(self) -> dict[str, Any]:
        """Masks and progress, for a checkpoint; the model and the optimizer have their own."""
        return sparse_state(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; the model's own state is loaded before this, but after the wrapping.

        Raises CheckpointError where it is of another network, or the model was loaded too early.
        """
        before = self.masks
        self._restore(state)
        new = {name: mask & ~before[name] for name, mask in self.masks.items()}
        lost = not any(bool(self.state.parameters[name][mask].any()) for name, mask in new.items())
        if lost and self.state.updates > 1 and any(bool(mask.any()) for mask in new.values()):
            raise CheckpointError(
                "Every connection that was grown before the checkpoint is 0: the model was loaded before it was "
                "wrapped, and wrapping masked it anew. Load it again now, or give the wrapping call state=."
            )
        apply_masks(self.state.model, self.masks)

    def _restore(self, state: Mapping[str, Any]) -> None:
        found = {name: tuple(mask.shape) for name, mask in state["masks"].items()}
        if found != {name: tuple(mask.shape) for name, mask in self.masks.items()}:
            raise CheckpointError(
                "The masks of the checkpoint are not of this network: its sparse layers are others, or of another "
                "size. Build the model and the rules for its layers as they were when it was saved."
            )
        place = next(iter(self.state.parameters.values())).device
        self.state = with_sparse_state(self.state, _to(state, place))

    def _starts(self) -> bool:
        return self.topology.method.starts_with_update and not self.state.updates

    def _advance(self, state: TrainState) -> None:
        changed = state.updates > self.state.updates
        self.state = state
        if changed:
            self._world.check_masks(state.masks, state.step)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, inside DistributedDataParallel, DataParallel and torch.compile."""
    while isinstance(model, (DistributedDataParallel, DataParallel)) or hasattr(model, "_orig_mod"):
        inner = model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def _world(device: torch.device) -> World:
    """The processes that train together, if the loop is in one of many."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    return World(0, 1, device)


def _to(value: Any, device: torch.device) -> Any:
    """Every tensor in nested dictionaries on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return {key: _to(item, device) for key, item in value.items()} if isinstance(value, Mapping) else value
