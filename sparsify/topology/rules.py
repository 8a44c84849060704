"""Which weights are sparse, and which have a sparsity of their own: the recipe's table [topology.layers].

Each line is a selector and what holds for the weights that it selects; a later line goes before an earlier one.

    "encoder.0.*" = "dense"                                 a pattern of names, of the weight or of its module
    "type:Embedding" = "sparse"                             a class of modules, or one that they derive from
    "layer:last" = {sparsity = 0.5, budget = "outside"}     layer:first, layer:last, layer:depthwise
    "*.qkv" = {parts = 3}                                   three matrices, each on its own
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from sparsify.errors import RecipeError
from sparsify.registry import nearest
from sparsify.topology.costs import Layer

Rules = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A layer, and what selectors can know it by."""

    layer: Layer
    names: tuple[str, ...]  # of the weight, all of them where it is tied
    types: frozenset[str]  # classes of the modules that own it


def is_depthwise(layer: Layer) -> bool:
    """Whether it is a convolution in which every channel sees one channel only."""
    return layer.groups > 1 and layer.matrix_shape[1] == 1


def apply_rules(candidates: list[Candidate], rules: Rules) -> list[Layer]:
    """The layers with what the rules say of them. Raises RecipeError for a selector that selects nothing."""
    layers = {candidate.layer.name: candidate.layer for candidate in candidates}
    for selector, rule in rules.items():
        chosen = _select(candidates, selector)
        if not chosen:
            raise RecipeError(_nothing(selector, candidates))
        for candidate in chosen:
            name = candidate.layer.name
            layers[name] = _ruled(layers[name], selector, rule)
    return list(layers.values())


def _select(candidates: list[Candidate], selector: str) -> list[Candidate]:
    kind, _, value = selector.partition(":")
    if kind == "type":
        return [candidate for candidate in candidates if value in candidate.types]
    if kind == "layer":
        if value == "depthwise":
            return [candidate for candidate in candidates if is_depthwise(candidate.layer)]
        return {"first": candidates[:1], "last": candidates[-1:]}.get(value, [])
    return [c for c in candidates if any(_matches(name, selector) for name in c.names)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def _ruled(layer: Layer, selector: str, rule: Any) -> Layer:
    if rule == "dense":
        return replace(layer, sparse=False, own=None, inside=False)
    if rule == "sparse":
        return replace(layer, sparse=True, own=None, inside=False)
    if "parts" in rule:
        if layer.outputs % rule["parts"] or (layer.axis == 1 and layer.groups > 1):
            raise RecipeError(
                f"[topology.layers] asks by '{selector}' for {rule['parts']} parts of {layer.name}, whose "
                f"{layer.outputs} outputs cannot be split so. Choose a divisor, or a narrower selector."
            )
        layer = replace(layer, parts=rule["parts"])
    if "sparsity" in rule:
        layer = replace(layer, sparse=True, own=float(rule["sparsity"]), inside=rule["budget"] == "inside")
    return layer


def _nothing(selector: str, candidates: Iterable[Candidate]) -> str:
    kind, _, value = selector.partition(":")
    if kind == "type":
        known = sorted({name for candidate in candidates for name in candidate.types})
        close = [f"type:{name}" for name in nearest(value, known)]
    elif kind == "layer":
        close = [f"layer:{name}" for name in ("first", "last", "depthwise")]
    else:
        close = nearest(selector, [name for candidate in candidates for name in candidate.names])
    hint = f" Near it are: {', '.join(close)}." if close else ""
    return (
        f"The selector '{selector}' in [topology.layers] selects none of the weights that this network multiplies "
        f"by.{hint} Run `sparsify inspect` for all names, and mend or remove the line."
    )
