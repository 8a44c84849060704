"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import DivergedError, InterruptedTraining
from sparsify.files import write_json
from sparsify.formats import load_format
from sparsify.recipe import Recipe
from sparsify.references import is_reference
from sparsify.topology.explored import Explored
from sparsify.topology.masks import Masks
from sparsify.training import run_folder
from sparsify.training.averaging import averaged
from sparsify.training.checkpoint import Window, save_checkpoint
from sparsify.training.compute import Compute
from sparsify.training.distributed import World, join_world
from sparsify.training.evaluate import cross_entropy, evaluate
from sparsify.training.interrupts import interrupts
from sparsify.training.learning_rate import learning_rate
from sparsify.training.metrics import open_metrics
from sparsify.training.monitoring import active_neurons, deaths
from sparsify.training.optimizer import set_learning_rate
from sparsify.training.precision import SMALLEST, LossScale, autocast
from sparsify.training.snapshot import snapshot
from sparsify.training.start import Own, Start, choose_device, start_run
from sparsify.training.step import TrainState, finish_step, record_gradients, start_by_gradient
from sparsify.training.timing import Times

LOG_EVERY = 50  # steps; the loss is looked at, and may stop the run, as often
logger = logging.getLogger("sparsify")


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step. `line` is the metrics' newest line."""

    step: int
    steps: int
    line: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = None  # after the last step
    times: Times | None = None  # after the last step, where steps do not run on beside their program


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    line: dict[str, Any]  # the last line of the metrics
    model: nn.Module | None = None  # the network as it was trained
    times: Times | None = None  # what steps cost; not on GPUs, which are not waited for


def train(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    device: str = "auto",
    resume: bool = False,
    compute: Compute | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a recipe from start to end, or on from its checkpoint.

    recipe: a Recipe, a name, a path, or None for the default (when resuming: for the run's own).
    out: the run folder, by default `runs/NAME-METHOD-SPARSITY-seedN`. model: a network of your own, in the place of
    the recipe's: a module, trained in place, or "package.module:function", which builds one. data: the folder of the
    data sets, or data of your own, see `data._own`: a pair of training and test set, or "package.module:function",
    which returns one. The loss is cross-entropy.
    device: "cpu", "cuda" or "auto". watch: called after every step. compute: "masked" (dense weights times masks) or
    "sparse" (non-zeros alone; CPU), by default as the checkpoint was saved, and masked for a new run.
    Raises SparsifyError; InterruptedTraining after SIGINT or SIGTERM, with the state saved.
    """
    progress = None
    for progress in training(recipe, out, model=model, data=data, device=device, resume=resume, compute=compute):
        if watch is not None:
            watch(progress)
    assert progress is not None
    line = {key: value for key, value in progress.line.items() if key != "folder"}
    return Result(Path(progress.line["folder"]), line, progress.model, progress.times)


def training(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    model: nn.Module | str | None = None,
    data: Any = None,
    device: str = "auto",
    resume: bool = False,
    compute: Compute | None = None,
) -> Iterator[Progress]:
    """The run as an iterator over its steps; `train` is this, exhausted.

    Under torchrun every rank iterates; rank 0 alone writes.
    """
    with join_world(choose_device(device)) as world:
        folder = data if isinstance(data, Path) or (isinstance(data, str) and not is_reference(data)) else None
        own = Own(model, data if folder is None else None)
        yield from _steps(start_run(recipe, out, folder, resume, world, compute, own), world)


def _steps(run: Start, world: World) -> Iterator[Progress]:
    recipe, settings, folder, topology = run.recipe, run.recipe.training, run.folder, run.topology
    state, window, dataset, steps = run.state, run.window, run.dataset, run.steps
    times = Times() if world.device.type == "cpu" else None
    forward = torch.compile(state.model) if settings.compile else state.model

    def backward(step: int, stop: bool = False) -> tuple[Tensor, bool]:
        batch = dataset.train_batch(step, settings.batch_size, settings.seed, world.share)
        world.seed(settings.seed, step)
        loss = _backward(forward, batch, recipe, state.loss_scale)
        return world.reduce_gradients(state.model, loss, stop)

    with (
        open_metrics(folder, run.metrics_bytes, state.step, world.writes) as metrics,
        interrupts(patient=world.size > 1) as stop_asked,
    ):
        line: dict[str, Any] = metrics.last
        while topology.method.starts_with_update and not state.updates:
            backward(1)
            state = start_by_gradient(state, topology)
            _check_scale(state)
        world.check_masks(state.masks, state.step)
        while state.step < steps:
            step, before = state.step + 1, state
            rate = learning_rate(recipe.optimizer.lr, recipe.learning_rate, step, steps)
            set_learning_rate(state.optimizer, rate)
            began = time.perf_counter()
            record_gradients(state, topology)
            # asked once: a signal that comes later waits for the next step
            loss, stopping = backward(step, stop_asked())
            window.loss += loss
            window.steps += 1
            state = finish_step(state, topology, settings.clip_norm, settings.ema)
            updated = state.updates > before.updates
            if times is not None:
                times.add(time.perf_counter() - began, updated)
            if updated:
                world.check_masks(state.masks, step)

            evaluating = step == steps or _ends_interval(step, recipe, len(dataset.train))
            if evaluating or step % LOG_EVERY == 0:
                line = _line(state, window, run, rate)
                if evaluating:
                    with averaged(state.model, state.average):
                        line |= evaluate(state.model, dataset)
                    window.dead = _tell_deaths(state.masks, window, line, world)
                metrics.write(line)
                window = Window(torch.zeros((), device=world.device), grown=state.grown, dead=window.dead)
            if (evaluating or stopping) and world.writes:
                save_checkpoint(folder / run_folder.CHECKPOINT, state, window, metrics.sync())
            yield Progress(step, steps, line)
            if stopping and step < steps:
                raise InterruptedTraining(
                    f"Stopped after step {step} of {steps}; everything is saved in {folder}. "
                    f"To continue: {run_folder.resume_command(folder)}"
                )

    if world.writes:
        _write_model(run, state, line)
    yield Progress(steps, steps, {**line, "folder": str(folder)}, state.model, times)


def _backward(
    forward: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor], recipe: Recipe, scale: LossScale | None
) -> Tensor:
    """Leave the gradient of the batch's mean loss, times the scale, in the model; returns the plain loss."""
    settings = recipe.training
    factor = (scale.value if scale else 1.0) / settings.accumulate
    total = torch.zeros((), device=batch[0].device)
    for inputs, labels in zip(*(part.chunk(settings.accumulate) for part in batch), strict=True):
        if settings.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(settings.precision, inputs.device):
            outputs = forward(inputs)
        loss = cross_entropy(outputs.float(), labels, label_smoothing=settings.label_smoothing)
        (loss * factor).backward()
        total += loss.detach() / settings.accumulate
    return total


def _ends_interval(step: int, recipe: Recipe, samples: int) -> bool:
    """Whether an evaluation is due: an interval of `evaluate_every` epochs ends with this step."""
    interval = recipe.training.evaluate_every * samples
    seen = step * recipe.training.batch_size
    return math.floor(seen / interval) > math.floor((seen - recipe.training.batch_size) / interval)


def _line(state: TrainState, window: Window, run: Start, rate: float) -> dict[str, Any]:
    """A line of the metrics. Raises DivergedError where the loss is not finite."""
    recipe, topology = run.recipe, run.topology
    loss = float(window.loss) / window.steps
    _check_scale(state)
    if not math.isfinite(loss):
        raise DivergedError(
            f"The training loss became {loss} before step {state.step}: training diverged. The last checkpoint "
            f"is from before that. Lower the learning rate (--set optimizer.lr={recipe.optimizer.lr / 3:.3g}) or "
            f"clip gradients (--set training.clip_norm=1.0), and train into another --out."
        )
    drop = topology.schedule.drop_fraction(state.step) if topology.method.updates_masks else 0.0
    return {
        "step": state.step,
        "epoch": round(state.step * recipe.training.batch_size / len(run.dataset.train), 4),
        "loss": loss,
        "learning_rate": rate,
        "sparsity": state.masks.sparsity(),
        "drop_fraction": drop,
        "updates": state.updates,
        "grown": state.grown - window.grown,
        "churn": state.churn,
        "itop_rate": (state.explored or Explored.of(state.masks)).rate(),
        "training_flops": state.flops * recipe.training.batch_size,
        "active_neurons": active_neurons(state.masks),
    }


def _tell_deaths(masks: Masks, window: Window, line: dict[str, Any], world: World) -> dict[str, Tensor]:
    """Warn of neurons that died since the last time, in the log and in the metrics; returns all known."""
    warnings, known = deaths(masks, window.dead)
    if warnings:
        line["warnings"] = warnings
    for warning in warnings if world.writes else ():
        logger.warning("%s", warning)
    return known


def _check_scale(state: TrainState) -> None:
    """Raises DivergedError where no loss scale makes the gradients finite."""
    if state.update_pending and (state.loss_scale is None and not state.step):
        raise DivergedError(
            "The gradient of the first batch is not finite, so no connections can be chosen by it. Look for "
            "values that are not finite in the data and in the network's initialisation."
        )
    if state.loss_scale is not None and state.loss_scale.value < SMALLEST:
        raise DivergedError(
            f"The gradients are not finite however small the loss scale, at step {state.step}: training diverged. "
            f"Lower the learning rate, clip gradients (--set training.clip_norm=1.0), or use training.precision "
            f"bfloat16, and train into another --out."
        )


def _write_model(run: Start, state: TrainState, line: dict[str, Any]) -> None:
    results = {key: value for key, value in line.items() if key.startswith("test_") or key == "training_flops"}
    results |= {"steps": state.step, "updates": state.updates}
    with averaged(state.model, state.average):
        final = snapshot(state.model, run.layers, state.masks, run.recipe, run.dataset.info, "trained", results)
    assert final.metadata is not None
    if state.masks.positions:  # nothing of the dense weights' size, on disk neither
        load_format("safetensors").write(final, run.folder / run_folder.PACKED, packed=True)
    else:
        load_format("safetensors").write(final, run.folder / run_folder.MODEL)
    write_json(run.folder / run_folder.CONFIG, final.metadata.model_dump(exclude={"live_zeros"}))
