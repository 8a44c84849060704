"""What a recipe will cost, worked out before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

from sparsify.data import DataInfo
from sparsify.recipe import Recipe
from sparsify.topology.costs import Layer, inference_flops, mean_step_flops, step_flops
from sparsify.topology.matrices import weight_counts
from sparsify.training.snapshot import build_network, recipe_method
from sparsify.training.start import build_topology
from sparsify.training.step import Topology
from sparsify.training.width import find_shapes


@dataclass(frozen=True)
class Plan:
    """FLOPs of a training to come (Evci et al. 2020, appendix H); FLOPs of one sample unless they are of all."""

    steps: int
    batch_size: int
    inference_flops: int  # when training is over
    dense_inference_flops: int  # of the recipe's network without zeros
    step_flops: float  # on average over training
    training_flops: float  # of all samples of all steps
    dense_training_flops: float  # of dense training for as many steps

    @property
    def ratio(self) -> float:
        """Training FLOPs, of dense training's for as many steps."""
        return self.training_flops / self.dense_training_flops if self.dense_training_flops else 1.0


def plan(recipe: Recipe, info: DataInfo) -> Plan:
    """The cost of training a recipe by its method, found by running the network's shapes.

    Raises RecipeError where the recipe's method cannot do what it asks.
    """
    method = recipe_method(recipe)
    steps, batch = recipe.steps(info.train_samples), recipe.training.batch_size
    _, layers, masks = build_network(recipe, info)
    topology = build_topology(recipe, steps, layers, masks)
    full = find_shapes(recipe, info) if method.equal_width else layers
    dense = inference_flops(full, {})
    own_dense = inference_flops(layers, {})
    sparse = mean_inference_flops(topology, layers, steps)
    per_step = mean_step_flops(
        sparse,
        own_dense,
        recipe.topology.delta_t,
        at_updates=recipe.topology.growth_batches if method.updates_masks and method.needs_dense_gradients else 0,
        at_every_step=bool(method.momentum),
    )
    return Plan(
        steps=steps,
        batch_size=batch,
        inference_flops=inference_flops(layers, planned_counts(topology, 1.0)),
        dense_inference_flops=dense,
        step_flops=per_step,
        training_flops=per_step * steps * batch,
        dense_training_flops=float(step_flops(dense, dense) * steps * batch),
    )


def planned_counts(topology: Topology, progress: float) -> dict[str, int]:
    """Connections of each weight after an update at this progress, 0 to 1."""
    planned = topology.method.planned_count
    counts = {name: planned(topology.initial[name], final, progress) for name, final in topology.final.items()}
    return weight_counts(topology.layers, counts)


def mean_inference_flops(topology: Topology, layers: list[Layer], steps: int) -> float:
    """f_S averaged over the steps of a training."""
    schedule = topology.schedule
    updates = schedule.last_update() // schedule.delta_t if topology.method.updates_masks else 0
    if not updates:
        return float(inference_flops(layers, planned_counts(topology, 1.0)))
    total = schedule.delta_t * inference_flops(layers, weight_counts(layers, topology.initial))
    for update in range(1, updates + 1):
        lasts = schedule.delta_t if update < updates else steps - schedule.last_update()
        total += lasts * inference_flops(layers, planned_counts(topology, update / updates))
    return total / steps
