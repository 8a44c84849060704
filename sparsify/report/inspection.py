"""`inspect`: where a model's weights are and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.data import data_info
from sparsify.formats import Metadata, SparseModel
from sparsify.recipe import load_recipe, parse_recipe
from sparsify.references import is_reference
from sparsify.registry import names
from sparsify.sources import open_source
from sparsify.topology.costs import Layer, format_bytes, inference_flops, sparse_bytes
from sparsify.topology.densities import allocate_counts
from sparsify.topology.matrices import weight_counts
from sparsify.training.metrics import read_metrics
from sparsify.training.plan import Plan, plan


@dataclass(frozen=True)
class LayerRow:
    """One layer. FLOPs are of one sample's forward pass, None where the file does not tell."""

    name: str
    shape: tuple[int, ...]
    sparse: bool  # has a mask
    matrices: int  # with connections of their own: gates; queries, keys and values
    own: float | None  # sparsity of its own, where the distribution did not decide
    inside: bool  # whether the others made up for that
    weights: int
    nonzeros: int
    density: float
    flops: int | None
    dense_flops: int | None
    bytes: int  # non-zeros at 4 bytes, positions at 1 bit a weight, biases
    densities: dict[str, float]  # what each distribution would give at the same total sparsity


@dataclass(frozen=True)
class Inspection:
    """A source, layer by layer and as a whole."""

    source: str
    facts: dict[str, Any]  # origin, method, distribution, training: what is known besides the weights
    layers: list[LayerRow]
    sparsity: float  # of the layers that take part, together
    weights: int
    nonzeros: int
    flops: int | None
    dense_flops: int | None
    bytes: int
    dense_bytes: int
    sizes: dict[str, int]  # bytes of weights and biases by the way of storing them
    plan: Plan | None  # what training will cost, of a recipe
    distribution_flops: dict[str, int]  # of each distribution at the same sparsity, where known
    mask_digest: str
    metrics: list[dict[str, Any]]  # of a run


def inspect(source: str | Path, changes: Sequence[str] = ()) -> Inspection:
    """Look into a recipe (before any training), a run, or a model file.

    changes: "section.key=value" each, for recipes. Raises SparsifyError where the source cannot be read.
    """
    model = open_source(source, changes, scan=True)
    counts = model.counts()
    nonzeros = {layer.name: layer.size for layer in model.layers} | counts
    total = sum(layer.size for layer in model.layers if layer.name in counts)
    sparsity = 1 - sum(counts.values()) / total if total else 0.0
    target = model.metadata.target_sparsity if model.metadata and model.metadata.sparsity else sparsity
    alternatives = _alternatives(model, target)
    known = model.metadata is not None or all(layer.positions for layer in model.layers)
    dense = {layer.name: layer.size for layer in model.layers}
    return Inspection(
        source=str(source),
        facts=_facts(model.metadata),
        layers=[_row(layer, nonzeros[layer.name], alternatives, known) for layer in model.layers],
        sparsity=sparsity,
        weights=sum(dense.values()),
        nonzeros=sum(nonzeros.values()),
        flops=inference_flops(model.layers, nonzeros) if known else None,
        dense_flops=inference_flops(model.layers, {}) if known else None,
        bytes=sparse_bytes(model.layers, nonzeros),
        dense_bytes=sparse_bytes(model.layers, dense),
        sizes=format_bytes(model.layers, nonzeros),
        plan=_plan(source, changes),
        distribution_flops={n: inference_flops(model.layers, c) for n, c in alternatives.items()} if known else {},
        mask_digest=model.digest(),
        metrics=read_metrics(Path(source)) if Path(source).is_dir() else [],
    )


def _alternatives(model: SparseModel, sparsity: float) -> dict[str, dict[str, int]]:
    """Non-zeros of each layer by every distribution."""
    target = min(sparsity, 1 - 1e-9)
    return {
        name: weight_counts(model.layers, allocate_counts(name, model.layers, target))
        for name in names("topology/distributions")
    }


def _row(layer: Layer, nonzeros: int, alternatives: dict[str, dict[str, int]], known: bool) -> LayerRow:
    return LayerRow(
        name=layer.name,
        shape=layer.shape,
        sparse=layer.sparse,
        matrices=layer.parts,
        own=layer.own,
        inside=layer.inside,
        weights=layer.size,
        nonzeros=nonzeros,
        density=nonzeros / layer.size if layer.size else 0.0,
        flops=layer.flops(nonzeros) if known or layer.positions else None,
        dense_flops=layer.flops(layer.size) if known or layer.positions else None,
        bytes=sparse_bytes([layer], {layer.name: nonzeros}),
        densities={
            name: counts.get(layer.name, layer.size) / max(1, layer.size) for name, counts in alternatives.items()
        },
    )


def _plan(source: str | Path, changes: Sequence[str]) -> Plan | None:
    """What training will cost, where the source is a recipe."""
    path = Path(source)
    if path.exists() and path.suffix != ".toml":
        return None
    recipe = load_recipe(str(source), changes)
    return plan(recipe, data_info(recipe.data.name, recipe.data.options))


def _facts(metadata: Metadata | None) -> dict[str, Any]:
    if metadata is None:
        return {"origin": "another program"}
    recipe = parse_recipe(metadata.network.recipe)
    own = is_reference(recipe.data.name)  # and then not looked at because a file names it
    samples = 0 if own else data_info(recipe.data.name, recipe.data.options).train_samples
    return {
        "origin": metadata.origin,
        "recipe": recipe.name,
        "model": {"name": recipe.model.name, **recipe.model.options},
        "data": recipe.data.name,
        "method": metadata.method,
        "distribution": metadata.distribution,
        "target_sparsity": metadata.target_sparsity,
        "training_steps": None if own and recipe.training.steps is None else recipe.steps(samples),
        "batch_size": recipe.training.batch_size,
        "optimizer": recipe.optimizer.model_dump(exclude_none=True),
        **({"results": metadata.training} if metadata.training else {}),
    }
