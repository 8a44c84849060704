"""Gradients of all weights, also of those that do not exist: what growth looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sparsify.nn import SparseLayer
from sparsify.nn.growth import gather

Gradients = Mapping[str, Tensor]  # by the weight's name


def dense_gradients(parameters: Mapping[str, Tensor], names: Iterable[str]) -> Gradients:
    """Copies of the batch's gradients as they are before masking."""
    found = {name: parameters[name] for name in names}
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in found.items()}


def running_mean(mean: Gradients, gradients: Gradients, decay: float) -> Gradients:
    """The exponential moving average with this batch in it; it begins at 0."""
    return {name: torch.lerp(g, mean.get(name, torch.zeros_like(g)), decay) for name, g in gradients.items()}


def added(gradients: Gradients, earlier: Gradients) -> Gradients:
    """Their sum, where there are earlier ones."""
    return {name: g + earlier[name] if name in earlier else g for name, g in gradients.items()}


def gather_sparse(layers: Mapping[str, SparseLayer], earlier: Gradients) -> Gradients:
    """The sum with what the sparse layers have on tape. These tensors have the size of dense weights."""
    return {name: gather(layer, earlier.get(name)) for name, layer in layers.items() if layer.tape}
