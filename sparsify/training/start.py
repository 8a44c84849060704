"""Everything that a run has before its first step, or has again when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.data import Data, DataInfo, load_data
from sparsify.data._own import own_data
from sparsify.errors import RecipeError
from sparsify.formats import read_model
from sparsify.formats._module import build_module
from sparsify.recipe import DEFAULT, Part, Recipe, load_recipe, parse_recipe
from sparsify.recipe import Topology as Settings
from sparsify.topology.costs import Layer
from sparsify.topology.densities import allocate_counts
from sparsify.topology.masks import Masks
from sparsify.topology.matrices import split
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training import run_folder
from sparsify.training.checkpoint import Window, load_checkpoint, read_checkpoint
from sparsify.training.compute import Compute, check_compute, with_sparse_layers
from sparsify.training.distributed import World
from sparsify.training.monitoring import dead_neurons
from sparsify.training.optimizer import build_optimizer
from sparsify.training.precision import LossScale
from sparsify.training.snapshot import build_network, load_method, recipe_method
from sparsify.training.sparse_network import build_sparse_network
from sparsify.training.step import Topology, TrainState, apply_masks


@dataclass(frozen=True, eq=False)
class Start:
    """What does not change during a run, and the state that it starts from."""

    recipe: Recipe
    folder: Path
    dataset: Data
    steps: int
    layers: list[Layer]
    topology: Topology
    state: TrainState
    window: Window
    metrics_bytes: int  # length of the metrics that belong to the state


@dataclass(frozen=True, eq=False)
class Own:
    """A model and data of the user's own: references, "package.module:function", or objects.

    Of objects a recipe can hold no more than a name, ":Net" or ":data".
    """

    model: nn.Module | str | None = None
    data: Any = None

    def named_in(self, recipe: Recipe) -> Recipe:
        """The recipe with them in the place of its network and data, and, if it is the default one, of its name."""
        changes: dict[str, Any] = {}
        if self.model is not None:
            changes["model"] = Part(name=self.model if isinstance(self.model, str) else f":{type(self.model).__name__}")
        if self.data is not None:
            changes["data"] = Part(name=self.data if isinstance(self.data, str) else ":data")
        if changes and recipe.name == DEFAULT:
            parts = [recipe.model_copy(update=changes).model.name, recipe.model_copy(update=changes).data.name]
            changes["name"] = "-".join(part.rpartition(":")[2] for part in parts)
        return parse_recipe(recipe.model_copy(update=changes).model_dump())


NOTHING = Own()


def start_run(
    recipe: Recipe | str | Path | None, out: str | Path | None, data: str | Path | None, resume: bool, world: World,
    compute: Compute | None = None, own: Own = NOTHING,
) -> Start:  # fmt: skip
    """Open or create the run's folder, load the data, build the network, and load the checkpoint if there is one.

    compute: masked or sparse, by default as the checkpoint was saved, and masked for a new run. own: what the user
    gave as objects.
    """
    recipe, folder = _open(recipe, out, resume, own)
    _check_shares(recipe, world)
    given = None if own.data is None or isinstance(own.data, str) else own_data(own.data)
    dataset = _load_data(recipe, data, world) if given is None else given.to(world.device)
    settings, place = recipe.training, world.device
    torch.manual_seed(settings.seed)
    checkpoint, content = folder / run_folder.CHECKPOINT, None
    if resume and checkpoint.is_file():
        content = read_checkpoint(checkpoint, place)
    sparse = compute == "sparse" or (compute is None and content is not None and bool(content.get("sparse")))
    if sparse:
        check_compute(recipe, recipe_method(recipe), world)
    network = own.model if isinstance(own.model, nn.Module) else None
    model, layers, masks = _network(recipe, dataset.info, resume, sparse, network)
    model.to(place)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = recipe.steps(len(dataset.train))
    topology = build_topology(recipe, steps, layers, masks)
    scale = LossScale(settings.loss_scale) if settings.precision == "float16" else None
    state = TrainState(model, build_optimizer(model, recipe.optimizer), masks.to(place), loss_scale=scale)
    window, kept = Window(torch.zeros((), device=place), dead=dead_neurons(state.masks)), 0
    if not resume and world.writes:
        run_folder.create(folder, recipe)
    elif content is not None:
        state, window, kept = load_checkpoint(checkpoint, content, state)
    world.barrier()  # all have read the checkpoint before it is replaced
    return Start(recipe, folder, dataset, steps, layers, topology, state, window, kept)


def _network(
    recipe: Recipe, info: DataInfo, resume: bool, sparse: bool, own: nn.Module | None
) -> tuple[nn.Module, list[Layer], Masks]:
    """The network as it is before the first step, or, where a run is resumed, one that its checkpoint fits."""
    drawn = resume or (recipe.training.start_from or recipe.topology.masks_from) is None
    if sparse and drawn and own is None:
        return build_sparse_network(recipe, info)
    model, layers, masks = (build_network if drawn else first_network)(recipe, info, own=own)
    return model, layers, with_sparse_layers(model, layers, masks, info.zeros()) if sparse else masks


def first_network(recipe: Recipe, info: DataInfo, own: nn.Module | None = None) -> tuple[nn.Module, list[Layer], Masks]:
    """The network before the first step: drawn from the seed, or started from another's masks, or weights and masks.

    Raises RecipeError where the other one is not of the same network.
    """
    source = recipe.training.start_from or recipe.topology.masks_from
    if source is None:
        return build_network(recipe, info, own=own)
    model, layers, masks = build_network(recipe, info, sparsity=0.0, own=own)  # every weight is still there
    path = Path(source)
    other = read_model(run_folder.model_file(path) if run_folder.is_run(path) else path)
    found = {name: torch.from_numpy(mask) for name, mask in other.masks().items()}
    mismatch = {name: mask.shape for name, mask in masks.items()} != {name: mask.shape for name, mask in found.items()}
    if other.metadata is None or mismatch:
        raise RecipeError(
            f"{source} does not hold masks for this recipe's network: it was not written by sparsify, or its layers "
            f"are others. Start from a run of the same architecture and sizes."
        )
    if recipe.training.start_from is not None:
        model.load_state_dict(build_module(other).state_dict())
    masks = replace(masks, tensors={name: found[name] for name in masks})
    apply_masks(model, masks)
    return model, layers, masks


def build_topology(recipe: Recipe, steps: int, layers: list[Layer], masks: Masks) -> Topology:
    """The recipe's method, schedule and counts; see `plan_topology`."""
    return plan_topology(recipe.topology, steps, recipe.training.seed, layers, masks)


def plan_topology(settings: Settings, steps: int, seed: int, layers: list[Layer], masks: Masks) -> Topology:
    """Method, schedule and counts. steps: of the whole training; masks: those before the first step.

    Raises RecipeError where the method reaches its sparsity by updates and there is none, and where there is
    nothing that could be sparse.
    """
    method = load_method(settings.method, settings.options)
    schedule = UpdateSchedule(
        delta_t=settings.delta_t,
        alpha=settings.alpha,
        t_end=round(settings.t_end * steps),
        decay=settings.schedule,
        power=settings.power,
        growth_batches=settings.growth_batches,
    )
    sparsity = settings.sparsity if method.sparse else 0.0
    if sparsity and not masks and not masks.positions:
        raise RecipeError(
            f"Nothing in this network can be {sparsity:.0%} sparse: no trainable matrix or kernel is left that its "
            f"forward pass multiplies by. Look for rules in topology.layers that keep too much dense, or train densely."
        )
    if method.updates_masks and method.initial_sparsity(sparsity) != sparsity and not schedule.last_update():
        raise RecipeError(
            f"The method {settings.method} reaches its sparsity by updates of the masks, and there is none: "
            f"topology.delta_t = {settings.delta_t} is more than the {schedule.t_end} steps up to topology.t_end. "
            f"Lower delta_t or train for longer."
        )
    final = allocate_counts(settings.distribution, layers, sparsity)
    masked = [layer for layer in layers if layer.name in masks]
    initial = {name: int(part.sum()) for layer in masked for name, part in split(layer, masks[layer.name]).items()}
    initial |= {name: held.count for name, held in masks.positions.items()}
    return Topology(method, schedule, seed, initial, final, tuple(layers))


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises RecipeError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"The device '{name}' cannot be used: {str(error).splitlines()[0]}. Use --device cpu, or auto."
        ) from None
    return device


def _open(recipe: Recipe | str | Path | None, out: str | Path | None, resume: bool, own: Own) -> tuple[Recipe, Path]:
    """The recipe and the folder of the run that was asked for."""
    if isinstance(recipe, (str, Path)) or (recipe is None and not (resume and out)):
        recipe = load_recipe(recipe)
    recipe = recipe and own.named_in(recipe)
    folder = Path(out) if out is not None else run_folder.default_folder(recipe)  # type: ignore[arg-type]
    if resume:
        return run_folder.reopen(folder, recipe), folder
    assert recipe is not None
    return recipe, folder


def _check_shares(recipe: Recipe, world: World) -> None:
    parts = world.size * recipe.training.accumulate
    if recipe.training.batch_size % parts:
        raise RecipeError(
            f"training.batch_size = {recipe.training.batch_size} is the batch of all processes together and cannot "
            f"be split into {parts} equal parts ({world.size} processes times training.accumulate = "
            f"{recipe.training.accumulate}). Choose a multiple of {parts}, or another number of processes."
        )


def _load_data(recipe: Recipe, folder: str | Path | None, world: World) -> Data:
    """The data set; where it has to be downloaded, rank 0 does and the others wait."""
    if not world.writes:
        world.barrier()
    dataset = load_data(recipe.data.name, recipe.data.options, folder)
    if world.writes:
        world.barrier()
    return dataset.to(world.device)
