"""torch's optimizers by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from sparsify.errors import RecipeError, UnknownNameError
from sparsify.nn import sparse_layers
from sparsify.recipe import Optimizer
from sparsify.registry import canonical, unknown

NEEDS_CLOSURE = {"lbfgs"}  # evaluate the loss several times a step, which a mask update cannot follow


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer class in torch.optim by its name in lower case."""
    members = inspect.getmembers(torch.optim, inspect.isclass)
    found = {n.lower(): c for n, c in members if issubclass(c, torch.optim.Optimizer)}
    return {n: c for n, c in found.items() if n not in NEEDS_CLOSURE | {"optimizer"}}


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters; only matrices and kernels are decayed.

    Raises UnknownNameError for the name, RecipeError for a key that this optimizer does not take.
    """
    classes = optimizer_names()
    if canonical(settings.name) not in classes:
        raise UnknownNameError(unknown("optimizer", settings.name, classes))
    factory = classes[canonical(settings.name)]
    options: dict[str, Any] = settings.model_dump(exclude_none=True, exclude={"name", "weight_decay", "decoupled"})
    accepted = inspect.signature(factory).parameters
    for key in options:
        if key not in accepted:
            raise RecipeError(unknown(f"key of the optimizer {settings.name}", key, set(accepted) - {"params"}))
    if settings.weight_decay and "weight_decay" not in accepted and not settings.decoupled:
        raise RecipeError(
            f"The optimizer {settings.name} has no weight decay of its own. Set optimizer.decoupled=true, or "
            f"optimizer.weight_decay=0."
        )
    parameters = list(model.parameters())
    values = {layer.weight for layer in sparse_layers(model).values()}  # matrices as lists
    decay = "shrink" if settings.decoupled else "weight_decay"
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in parameters if p.ndim > 1 or p in values],
            "weight_decay": 0.0,
            decay: settings.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1 and p not in values], "weight_decay": 0.0},
    ]
    if "weight_decay" not in accepted:
        for group in groups:
            del group["weight_decay"]
    try:
        return factory([group for group in groups if group["params"]], **options)
    except ValueError as error:
        raise RecipeError(f"[optimizer]: {error}.") from None


def shrink_weights(optimizer: torch.optim.Optimizer) -> None:
    """Decoupled weight decay, w <- (1 - lr * decay) w, for any optimizer (Loshchilov and Hutter 2019)."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            for weight in group["params"] if group.get("shrink") else ():
                weight.mul_(1 - group["lr"] * group["shrink"])


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
