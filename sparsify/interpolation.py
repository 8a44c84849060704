"""The training loss between two solutions, along straight and along fitted paths (Evci et al. 2020, section 4.4).

A path is a Bézier curve from the weights of one run to those of another: a line, or a quadratic or cubic curve whose
inner control points are fitted to make the mean loss along it small (Garipov et al. 2018). In the sparse subspace the
control points have weights only where one of the two ends has a connection; in the full space they have all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsify.data import Data, load_data
from sparsify.errors import RecipeError
from sparsify.formats import SparseModel
from sparsify.formats._module import build_module
from sparsify.randomness import generator
from sparsify.recipe import Recipe, parse_recipe
from sparsify.sources import open_source
from sparsify.training.evaluate import cross_entropy

Space = Literal["sparse", "full"]
Point = dict[str, Tensor]  # every parameter of the network, by name
Watch = Callable[[int, int, str], None]  # units of work done, in all, what is being done
DEGREES = {"line": 1, "quadratic": 2, "cubic": 3}
BATCH = 500  # samples that a loss is evaluated on at once


@dataclass(frozen=True)
class PathLoss:
    """The training loss along one path; `losses[i]` belongs to `positions[i]`."""

    curve: str
    space: Space | None  # None for the line, which lies in both
    losses: list[float]  # nats
    barrier: float  # the most by which a loss exceeds the straight line between the losses of the two ends


@dataclass(frozen=True)
class Landscape:
    """Losses along the paths from `start` (position 0) to `end` (position 1)."""

    start: str
    end: str
    samples: int  # of the training set that every loss is a mean over
    positions: list[float]
    paths: list[PathLoss]


def landscape(
    start: str | Path,
    end: str | Path,
    *,
    curves: Sequence[str] = ("quadratic", "cubic"),
    spaces: Sequence[Space] = ("sparse", "full"),
    points: int = 21,
    steps: int = 1000,
    samples: int = 10_000,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    data: str | Path | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Landscape:
    """Measure the training loss between two runs (or model files) of the same network and data set.

    The line is always measured. points: places on a path, ends included. steps, learning_rate, batch_size: of the
    Adam steps that fit a curve, each at a random position. samples: training samples that a loss is a mean over;
    running statistics of batch norms are computed anew on them at each place.
    Raises RecipeError where the two are not of one network, or a number is out of range.
    """
    _check(curves, spaces, points, steps, samples)
    models = [open_source(start), open_source(end)]
    recipe = _common_recipe(models, (start, end))
    ends, union = [_parameters(model) for model in models], _union(models)
    dataset = load_data(recipe.data.name, recipe.data.options, data)
    module = build_module(models[0])
    held = _samples(dataset, samples, seed)
    positions = [i / (points - 1) for i in range(points)]
    chosen: list[tuple[str, Space | None]] = [("line", None)]
    chosen += [(curve, space) for curve in curves for space in spaces if curve != "line"]
    total, done = sum(points + (steps if space else 0) for _, space in chosen), 0

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        if watch is not None:
            watch(done, total, what)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return dataset.train_batch(step, batch_size, seed)

    paths = []
    for curve, space in chosen:
        control = straight(ends[0], ends[1], DEGREES[curve])
        if space is not None:
            allowed = union if space == "sparse" else {}
            control = fit(module, control, batch, steps, allowed, learning_rate, seed, advance)
        losses = []
        for t in positions:
            losses.append(loss_at(module, bezier(control, t), held))
            advance("measuring")
        paths.append(PathLoss(curve, space, losses, barrier(positions, losses)))
    return Landscape(str(start), str(end), len(held[0]), positions, paths)


def bezier(control: Sequence[Point], t: float) -> Point:
    """The point at t (0 to 1) of the Bézier curve with these control points: sum of C(n,i) (1-t)^(n-i) t^i P_i."""
    n = len(control) - 1
    shares = [math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1)]
    return {name: sum(s * p[name] for s, p in zip(shares, control, strict=True)) for name in control[0]}  # type: ignore[misc]


def straight(start: Point, end: Point, degree: int) -> list[Point]:
    """Control points of the line from start to end, as a Bézier curve of a degree."""
    return [{k: torch.lerp(start[k], end[k], i / degree) for k in start} for i in range(degree + 1)]


def fit(
    module: nn.Module,
    control: Sequence[Point],
    batch: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    allowed: Mapping[str, Tensor],
    learning_rate: float,
    seed: int = 0,
    advance: Callable[[str], None] = lambda _: None,
) -> list[Point]:
    """Move the inner control points so that the mean loss along the curve falls; the ends stay.

    batch: inputs and labels of a step, counted from 1. allowed: bool by weight name; weights of the control points
    outside it stay as they are. One Adam step for each batch, at a position drawn from the seed; the learning rate
    falls to 0 along a cosine.
    """
    inner = [{name: tensor.clone().requires_grad_() for name, tensor in point.items()} for point in control[1:-1]]
    optimizer = torch.optim.Adam([tensor for point in inner for tensor in point.values()], lr=learning_rate)
    random = generator(seed, "landscape")
    module.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        inputs, labels = batch(step)
        t = float(torch.rand((), generator=random))
        outputs = functional_call(module, bezier([control[0], *inner, control[-1]], t), (inputs,))
        optimizer.zero_grad()
        cross_entropy(outputs, labels).backward()
        for point in inner:
            for name, mask in allowed.items():
                gradient = point[name].grad
                assert gradient is not None
                gradient.mul_(mask)  # Adam leaves alone what never had a gradient
        optimizer.step()
        advance("fitting")
    return [control[0], *({name: tensor.detach() for name, tensor in point.items()} for point in inner), control[-1]]


def loss_at(module: nn.Module, point: Point, held: tuple[Tensor, Tensor]) -> float:
    """Mean cross-entropy (nats) over the held samples, batch norm's running statistics computed anew on them."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    parts = list(zip(*(tensor.split(BATCH) for tensor in held), strict=True))
    with torch.no_grad():
        if norms:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over batches
            module.train()
            for inputs, _ in parts:
                functional_call(module, point, (inputs,))
        module.eval()
        losses = (
            float(cross_entropy(functional_call(module, point, (x,)), labels, reduction="sum")) for x, labels in parts
        )
        return math.fsum(losses) / held[1].numel()


def barrier(positions: Sequence[float], losses: Sequence[float]) -> float:
    """The most by which a loss lies above the straight line between the first and the last; at least 0."""
    first, last = losses[0], losses[-1]
    return max(loss - (first + t * (last - first)) for t, loss in zip(positions, losses, strict=True))


def _check(curves: Sequence[str], spaces: Sequence[str], points: int, steps: int, samples: int) -> None:
    for given, known, what in ((curves, DEGREES, "curve"), (spaces, ("sparse", "full"), "space")):
        for name in given:
            if name not in known:
                raise RecipeError(f"There is no {what} called '{name}'. Known: {', '.join(known)}.")
    if points < 3 or steps < 1 or samples < 1:
        raise RecipeError("A landscape takes at least 3 points, 1 step and 1 sample: raise the number that is less.")


def _common_recipe(models: Sequence[SparseModel], names: Sequence[str | Path]) -> Recipe:
    """The recipe of both ends. Raises RecipeError where they have not one network and one data set."""
    recipes = []
    for model, name in zip(models, names, strict=True):
        if model.metadata is None:
            raise RecipeError(
                f"{name} does not say which network it holds. Give two runs, or files exported from runs."
            )
        recipes.append(parse_recipe(model.metadata.network.recipe))
    first, second = recipes
    shapes = [{name: tensor.shape for name, tensor in model.tensors.items()} for model in models]
    if first.model != second.model or first.data.name != second.data.name or shapes[0] != shapes[1]:
        raise RecipeError(
            f"{names[0]} ({first.model.name} on {first.data.name}) and {names[1]} ({second.model.name} on "
            f"{second.data.name}) are not two solutions of one problem: network, sizes or data differ, so "
            f"there is no path between them."
        )
    return first


def _parameters(model: SparseModel) -> Point:
    return {name: parameter.detach().clone() for name, parameter in build_module(model).named_parameters()}


def _union(models: Sequence[SparseModel]) -> dict[str, Tensor]:
    """Weights that exist at either end."""
    first, second = (model.masks() for model in models)
    return {name: torch.from_numpy(first[name] | second[name]) for name in first.keys() & second.keys()}


def _samples(dataset: Data, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first samples of the training stream, as training sees them."""
    count = min(samples, len(dataset.train))
    sizes = [BATCH] * (count // BATCH) or [count]
    drawn = [dataset.train_batch(step, size, seed) for step, size in enumerate(sizes, 1)]
    inputs, labels = zip(*drawn, strict=True)
    return torch.cat(inputs), torch.cat(labels)
