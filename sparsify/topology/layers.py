"""The layers of a network, found by running it once, and which of them are sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sparsify.topology.costs import Layer
from sparsify.topology.rules import Candidate, Rules, apply_rules, is_depthwise
from sparsify.topology.watching import Use, watch

GATES = {"GRU": 3, "GRUCell": 3, "LSTM": 4, "LSTMCell": 4}


def find_layers(model: nn.Module, sample: Any, rules: Rules | None = None) -> list[Layer]:
    """Weights that a forward pass multiplies by or looks up in, in the order of their first use.

    sample: input of the forward pass: a tensor [n, ...], or its positional or keyword arguments as a tuple or a
    dictionary; a function without arguments runs the model by itself, on one sample. rules: the recipe's table
    [topology.layers], see `topology.rules`. The model is run in evaluation mode and left as it was.

    Sparse are matrices and kernels, also those of transposed and grouped convolutions, RNNs (each gate a matrix of
    its own), attention (each of queries, keys and values) and under `torch.nn.utils.parametrize`. Depthwise
    convolutions, embeddings, also those that are tied to a matrix, and frozen weights are dense unless a rule says
    otherwise.
    Tensors that no product uses, such as biases, norms and added embeddings, are not among the results. A weight
    that is used twice or tied appears once with its uses added. Raises RecipeError for a rule that fits nothing.
    """
    uses = watch(model, _call(model, sample))
    places, samples = _places(model), _samples(sample)
    return apply_rules([_candidate(use, places[use.name], samples) for use in uses], rules or {})


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a parameter is in a model."""

    name: str  # from the root, "encoder.0.weight"
    module: nn.Module
    attribute: str  # its name in the module, "weight"
    parameter: nn.Parameter


def _candidate(use: Use, places: list[_Place], samples: int) -> Candidate:
    positions = round(use.multiplications / math.prod(use.shape) / samples)
    parts = max(_parts(place.module, place.attribute) for place in places)
    layer = Layer(use.name, use.shape, positions, axis=use.axis, groups=use.groups, parts=parts)
    frozen = not any(place.parameter.requires_grad for place in places)
    dense = frozen or use.embeds or is_depthwise(layer)
    types = frozenset(kind.__name__ for place in places for kind in type(place.module).__mro__[:-1])
    return Candidate(replace(layer, sparse=not dense), tuple(place.name for place in places), types)


def _parts(module: nn.Module, attribute: str) -> int:
    """Matrices in one of torch's own modules' weights that belong to different gates or projections."""
    if isinstance(module, nn.MultiheadAttention):
        return 3 if attribute == "in_proj_weight" else 1
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and attribute.startswith(("weight_ih", "weight_hh")):
        return next((GATES[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in GATES), 1)
    return 1


def _places(model: nn.Module) -> dict[str, list[_Place]]:
    """Where each parameter is, by its first name; tied ones are in several places.

    One behind a parametrization is also where the weight is that is computed from it.
    """
    found: dict[int, list[_Place]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        here = list(module.named_parameters(recurse=False))
        chains = getattr(module, "parametrizations", None)
        for name, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
            here += [(name, parameter) for parameter in chain.parameters(recurse=False)]
        for name, parameter in here:
            found.setdefault(id(parameter), []).append(_Place(prefix + name, module, name, parameter))
    return {first: found[id(parameter)] for first, parameter in model.named_parameters()}


def _call(model: nn.Module, sample: Any) -> Callable[[], Any]:
    if isinstance(sample, Mapping):
        return lambda: model(**sample)
    if isinstance(sample, (tuple, list)):
        return lambda: model(*sample)
    return sample if callable(sample) and not isinstance(sample, Tensor) else lambda: model(sample)


def _samples(sample: Any) -> int:
    """Leading extent of the first tensor in it."""
    if isinstance(sample, Tensor):
        return max(1, len(sample)) if sample.ndim else 1
    parts = sample.values() if isinstance(sample, Mapping) else sample if isinstance(sample, (tuple, list)) else ()
    return next((_samples(part) for part in parts if isinstance(part, Tensor)), 1)
