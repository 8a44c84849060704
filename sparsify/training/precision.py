"""Reduced precision: autocast, and the scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST = 2.0**-24  # a scale below this mends nothing: the gradient itself is not finite


@dataclass(frozen=True)
class LossScale:
    """A factor on the loss that adapts (Micikevicius et al. 2018, section 3.2); a value, replaced every step.

    It halves after a gradient that is not finite and doubles after `interval` finite ones in a row.
    """

    value: float = 2.0**16
    finite: int = 0  # finite gradients since the last change
    interval: int = 2000

    def after(self, finite: bool) -> LossScale:
        """The scale for the next step."""
        if not finite:
            return replace(self, value=self.value / 2, finite=0)
        if self.finite + 1 == self.interval:
            return replace(self, value=self.value * 2, finite=0)
        return replace(self, finite=self.finite + 1)


def autocast(precision: str, device: torch.device) -> Any:
    """The context in which the forward pass runs."""
    if precision not in AUTOCAST:
        return contextlib.nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def unscale(parameters: Iterable[nn.Parameter], scale: LossScale | None) -> None:
    """Divide the gradients by the scale of the loss that they belong to."""
    if scale is not None:
        for gradient in _gradients(parameters):
            gradient.div_(scale.value)


def gradients_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether every entry of every gradient is a finite number."""
    checks = [torch.isfinite(gradient).all() for gradient in _gradients(parameters)]
    return bool(torch.stack(checks).all()) if checks else True


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
