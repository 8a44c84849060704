"""The learning rate over training."""

from __future__ import annotations

import math

from sparsify.recipe import LearningRate


def learning_rate(base: float, settings: LearningRate, step: int, steps: int) -> float:
    """Learning rate of `step` out of `steps`, counted from 1. Warm-up is linear from 0."""
    done = (step - 1) / steps
    warmup = round(settings.warmup * steps)
    if step <= warmup:
        return base * step / warmup
    if settings.schedule == "step":
        passed = sum(step > round(milestone * steps) for milestone in settings.milestones)
        return base * settings.gamma**passed
    if settings.schedule == "cosine":
        progress = (done - settings.warmup) / (1 - settings.warmup)
        return base * (1 + math.cos(math.pi * progress)) / 2
    return base
