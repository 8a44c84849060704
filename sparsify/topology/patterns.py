"""Structured sparsity as rows with a quota each: constant fan-in, and at most N of every M inputs.

A weight [out, in, kernel...] is seen as rows of candidates, [rows, length], out of which each row keeps its
quota. Constant fan-in has one row a neuron; N:M one row for each group of M consecutive inputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsify.topology.connections import Connections
from sparsify.topology.select import largest, widen


def largest_in_rows(score: Tensor, quota: Tensor, first: Tensor | None = None) -> Tensor:
    """Mask of the `quota[i]` largest scores of row i; among equal ones the lower index comes first.

    score: [rows, length]; quota: [rows] int. first: [rows, length] bool, positions that are taken before all
    others whatever their score.
    """
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    if first is not None:
        preferred = torch.argsort(first.gather(1, order).to(torch.uint8), dim=1, descending=True, stable=True)
        order = order.gather(1, preferred)
    taken = torch.arange(score.shape[1], device=score.device)[None] < quota[:, None]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, taken)


def fan_in_quota(active: Tensor, count: int) -> Tensor:
    """The same fan-in for every active neuron, together at most `count`: [out] int.

    active: [out] bool, with at most `count` True.
    """
    neurons = int(active.sum())
    return active * (count // neurons if neurons else 0)


def fan_in_neurons(salience: Tensor, wanted: Tensor, fan_in: int, count: int) -> Tensor:
    """Which neurons are active: those wanted, as far as `count` connections need and allow it. [out] bool.

    salience: [out], who is added first or left out first. fan_in: inputs of a neuron, so that `count`
    connections need at least count / fan_in neurons; each needs at least one connection.
    """
    fewest, most = math.ceil(count / fan_in) if fan_in else 0, min(count, len(salience))
    neurons = torch.tensor([min(max(int(wanted.sum()), fewest), most)], device=salience.device)
    return largest_in_rows(salience[None], neurons, wanted[None])[0]


def input_groups(tensor: Tensor, size: int, padding: float | bool) -> Tensor:
    """[out, in, kernel...] as [rows, size]: groups of consecutive inputs at one neuron and kernel position.

    The last group of a neuron is filled up with `padding` where `size` does not divide the inputs.
    """
    inputs_last = tensor.movedim(1, -1)  # [out, kernel..., in]
    missing = -tensor.shape[1] % size
    return torch.nn.functional.pad(inputs_last, (0, missing), value=padding).reshape(-1, size)


def from_input_groups(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `input_groups`: a tensor of the weight's shape."""
    out, inputs, *kernel = shape
    padded = rows.reshape(out, *kernel, inputs + -inputs % rows.shape[1])
    return padded[..., :inputs].movedim(-1, 1).contiguous()


def draw_fan_in(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """A random mask of at most `count` connections, the same number for every active neuron."""
    score = torch.rand(shape, generator=generator).flatten(1)  # [out, fan-in]
    active = fan_in_neurons(score.sum(1), torch.ones(shape[0], dtype=torch.bool), score.shape[1], count)
    return largest_in_rows(score, fan_in_quota(active, count)).reshape(shape)


def exchange_fan_in(layer: Connections, fraction: float, salient: float) -> Tensor:
    """The next mask with constant fan-in (Lasby et al. 2024, section 3, steps 1 to 7).

    fraction: share of the connections to replace. salient: share of its fan-in that a neuron needs salient.
    """
    assert layer.gradient is not None
    weight, gradient = widen(layer.weight.abs()).flatten(1), widen(layer.gradient.abs()).flatten(1)
    mask = layer.mask.flatten(1)
    replaced = int(fraction * layer.count)
    kept = largest(weight.masked_fill(~mask, -math.inf), layer.count - replaced)
    promising = largest(gradient.masked_fill(mask, -math.inf), min(replaced, int((~mask).sum())))
    salience = (kept | promising).sum(1)  # [out]
    wanted = salience >= max(1.0, salient * int(mask.sum(1).max()))
    active = fan_in_neurons(salience, wanted, mask.shape[1], layer.final)
    score = torch.where(kept, weight, gradient)
    return largest_in_rows(score, fan_in_quota(active, layer.final), first=kept).reshape(layer.mask.shape)


def largest_in_groups(score: Tensor, kept: Tensor, count: int, limit: int, size: int) -> Tensor:
    """`kept` and the `count` largest scores beside it such that no group of `size` inputs holds over `limit`.

    score, kept: the weight's shape. A group that holds more already gets no more. There must be room for all.
    """
    rows, held = input_groups(score, size, -math.inf), input_groups(kept, size, False)
    room = (limit - held.sum(1)).clamp(min=0)
    candidates = largest_in_rows(rows.masked_fill(held, -math.inf), room)
    open_ = from_input_groups(candidates, score.shape) & ~kept
    return kept | largest(score.masked_fill(~open_, -math.inf), count)


def group_limit(count: int, total: int, size: int) -> int:
    """N: the fewest connections a group of `size` inputs must be allowed for `count` of `total` weights to exist."""
    return -(-size * count // total) if total else 0


def draw_groups(shape: tuple[int, ...], count: int, size: int, generator: torch.Generator) -> Tensor:
    """A random mask of `count` connections, at most N in each group of `size` inputs."""
    score = torch.rand(shape, generator=generator)
    limit = group_limit(count, score.numel(), size)
    return largest_in_groups(score, torch.zeros(shape, dtype=torch.bool), count, limit, size)


def exchange_in_groups(layer: Connections, fraction: float, size: int) -> Tensor:
    """Drop and grow as RigL does, where growth leaves at most N connections in each group of `size` inputs."""
    assert layer.gradient is not None
    dropped = int(fraction * layer.count)
    weight = widen(layer.weight.abs()).masked_fill(~layer.mask, -math.inf)
    kept = largest(weight, layer.count - dropped)
    limit = group_limit(max(layer.final, layer.count), layer.mask.numel(), size)
    return largest_in_groups(widen(layer.gradient.abs()), kept, dropped, limit, size)
