"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data import load_data
from sparsify.errors import DivergedError, InterruptedTraining, RecipeError
from sparsify.files import write_json
from sparsify.formats import load_format
from sparsify.recipe import Recipe, load_recipe
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training import run_folder
from sparsify.training.checkpoint import Window, load_checkpoint, save_checkpoint
from sparsify.training.evaluate import evaluate
from sparsify.training.interrupts import interrupts
from sparsify.training.learning_rate import learning_rate
from sparsify.training.metrics import Metrics
from sparsify.training.optimizer import build_optimizer, set_learning_rate
from sparsify.training.snapshot import build_network, load_method, snapshot
from sparsify.training.step import Topology, TrainState, finish_step

LOG_EVERY = 50  # steps; the loss is looked at, and may stop the run, as often


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step. `line` is the metrics' newest line."""

    step: int
    steps: int
    line: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    line: dict[str, Any]  # the last line of the metrics


def train(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    watch: Callable[[Progress], None] | None = None,
) -> Result:
    """Train a recipe from start to end, or on from its checkpoint.

    recipe: a Recipe, a name, a path, or None for the default (when resuming: for the run's own).
    out: the run folder, by default `runs/NAME-METHOD-SPARSITY-seedN`. data: folder of the data sets.
    device: "cpu", "cuda" or "auto". watch: called after every step.
    Raises SparsifyError; InterruptedTraining after SIGINT or SIGTERM, with the state saved.
    """
    progress = None
    for progress in training(recipe, out, data=data, device=device, resume=resume):
        if watch is not None:
            watch(progress)
    assert progress is not None
    return Result(Path(progress.line["folder"]), {k: v for k, v in progress.line.items() if k != "folder"})


def training(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
) -> Iterator[Progress]:
    """The run as an iterator over its steps; `train` is this, exhausted."""
    recipe, folder = _open(recipe, out, resume)
    place = choose_device(device)
    dataset = load_data(recipe.data.name, recipe.data.options, data).to(place)
    steps = recipe.steps(len(dataset.train))
    settings = recipe.training

    torch.manual_seed(settings.seed)
    model, layers, masks = build_network(recipe, dataset.info)
    model.to(place)
    state = TrainState(model, build_optimizer(model, recipe.optimizer), masks.to(place))
    window, kept = Window(torch.zeros((), device=place)), 0
    if not resume:
        run_folder.create(folder, recipe)
    elif (folder / run_folder.CHECKPOINT).is_file():
        state, window, kept = load_checkpoint(folder / run_folder.CHECKPOINT, state)
    topology = _topology(recipe, steps)

    with Metrics(folder, kept, state.step) as metrics, interrupts() as stop_asked:
        line: dict[str, Any] = metrics.last
        while state.step < steps:
            step = state.step + 1
            rate = learning_rate(recipe.optimizer.lr, recipe.learning_rate, step, steps)
            set_learning_rate(state.optimizer, rate)
            batch = dataset.train_batch(step, settings.batch_size, settings.seed)
            window.loss += _backward(state.model, batch, recipe)
            window.steps += 1
            state = finish_step(state, topology, settings.clip_norm)

            evaluating = step == steps or _ends_interval(step, recipe, len(dataset.train))
            if evaluating or step % LOG_EVERY == 0:
                line = _line(state, window, recipe, topology, rate, len(dataset.train))
                if evaluating:
                    line["test_loss"], line["test_accuracy"] = evaluate(state.model, dataset)
                metrics.write(line)
                window = Window(torch.zeros((), device=place), grown=state.grown)
            stopping = stop_asked()  # asked once: a signal that comes later waits for the next step
            if evaluating or stopping:
                save_checkpoint(folder / run_folder.CHECKPOINT, state, window, metrics.sync())
            yield Progress(step, steps, line)
            if stopping and step < steps:
                raise InterruptedTraining(
                    f"Stopped after step {step} of {steps}; everything is saved in {folder}. "
                    f"To continue: {run_folder.resume_command(folder)}"
                )

    results = {key: line[key] for key in ("test_loss", "test_accuracy")}
    results |= {"steps": state.step, "updates": state.updates}
    final = snapshot(state.model, layers, state.masks, recipe, dataset.info, "trained", results)
    assert final.metadata is not None
    load_format("safetensors").write(final, folder / run_folder.MODEL)
    write_json(folder / run_folder.CONFIG, final.metadata.model_dump(exclude={"live_zeros"}))
    yield Progress(steps, steps, {**line, "folder": str(folder)})


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


def _open(recipe: Recipe | str | Path | None, out: str | Path | None, resume: bool) -> tuple[Recipe, Path]:
    """The recipe and the folder of the run that was asked for."""
    if isinstance(recipe, (str, Path)) or (recipe is None and not (resume and out)):
        recipe = load_recipe(recipe)
    folder = Path(out) if out is not None else run_folder.default_folder(recipe)  # type: ignore[arg-type]
    if resume:
        return run_folder.reopen(folder, recipe), folder
    assert recipe is not None
    return recipe, folder


def _topology(recipe: Recipe, steps: int) -> Topology:
    settings = recipe.topology
    schedule = UpdateSchedule(
        delta_t=settings.delta_t,
        alpha=settings.alpha,
        t_end=round(settings.t_end * steps),
        decay=settings.schedule,
        power=settings.power,
    )
    return Topology(load_method(settings.method), schedule, recipe.training.seed)


def _backward(model: nn.Module, batch: tuple[Tensor, Tensor], recipe: Recipe) -> Tensor:
    """Leave the gradient of the batch's mean loss in the model; returns that loss, on the device."""
    settings = recipe.training
    autocast: Any = contextlib.nullcontext()
    if settings.precision == "bfloat16":
        autocast = torch.autocast(batch[0].device.type, torch.bfloat16)
    total = torch.zeros((), device=batch[0].device)
    for inputs, labels in zip(*(part.chunk(settings.accumulate) for part in batch), strict=True):
        with autocast:
            outputs = model(inputs)
        loss = nn.functional.cross_entropy(outputs.float(), labels, label_smoothing=settings.label_smoothing)
        (loss / settings.accumulate).backward()
        total += loss.detach() / settings.accumulate
    return total


def _ends_interval(step: int, recipe: Recipe, samples: int) -> bool:
    """Whether an evaluation is due: an interval of `evaluate_every` epochs ends with this step."""
    interval = recipe.training.evaluate_every * samples
    seen = step * recipe.training.batch_size
    return math.floor(seen / interval) > math.floor((seen - recipe.training.batch_size) / interval)


def _line(
    state: TrainState, window: Window, recipe: Recipe, topology: Topology, rate: float, samples: int
) -> dict[str, Any]:
    """A line of the metrics. Raises DivergedError where the loss is not finite."""
    loss = float(window.loss) / window.steps
    if not math.isfinite(loss):
        raise DivergedError(
            f"The training loss became {loss} before step {state.step}: training diverged. The last checkpoint "
            f"is from before that. Lower the learning rate (--set optimizer.lr={recipe.optimizer.lr / 3:.3g}) or "
            f"clip gradients (--set training.clip_norm=1.0), and train into another --out."
        )
    drop = topology.schedule.drop_fraction(state.step) if topology.method.updates_masks else 0.0
    return {
        "step": state.step,
        "epoch": round(state.step * recipe.training.batch_size / samples, 4),
        "loss": loss,
        "learning_rate": rate,
        "sparsity": state.masks.sparsity(),
        "drop_fraction": drop,
        "updates": state.updates,
        "grown": state.grown - window.grown,
    }
