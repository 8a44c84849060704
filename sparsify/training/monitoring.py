"""What to watch in a topology that changes: exploration, neurons, and what died."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sparsify.topology.masks import Masks

Neurons = Mapping[str, Tensor]  # [out] bool by the weight's name

NAMED = 8  # neurons that a warning lists


def dead_neurons(masks: Masks) -> dict[str, Tensor]:
    """Output neurons or channels without any connection."""
    return {name: ~active for name, active in masks.active_neurons().items()}


def active_neurons(masks: Masks) -> dict[str, int]:
    """Output neurons or channels of each layer that have a connection."""
    return {name: int(active.sum()) for name, active in masks.active_neurons().items()}


def deaths(masks: Masks, known: Neurons) -> tuple[list[str], dict[str, Tensor]]:
    """A warning for each layer with neurons that died and are not `known` dead, and all that are known now.

    A neuron that comes back to life and dies again is not told twice.
    """
    dead = dead_neurons(masks)
    warnings = []
    for name, neurons in dead.items():
        new = neurons & ~known[name]
        if bool(new.any()):
            warnings.append(_warning(name, new.nonzero().flatten().tolist(), neurons))
    return warnings, {name: known[name] | neurons for name, neurons in dead.items()}


def _warning(name: str, new: list[int], dead: Tensor) -> str:
    if bool(dead.all()):
        return (
            f"The layer {name} died: it has no connection left, so nothing passes it any more. Its share of the "
            f"weights is too small: lower topology.sparsity, or choose another distribution or method."
        )
    listed = ", ".join(map(str, new[:NAMED])) + (f" and {len(new) - NAMED} more" if len(new) > NAMED else "")
    what = "neuron" if len(new) == 1 else "neurons"
    return f"In {name} the {what} {listed} died: no connection leads there now ({int(dead.sum())} of {len(dead)} so)."
