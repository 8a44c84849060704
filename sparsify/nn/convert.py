"""From a torch model with masks to one that holds its non-zeros only, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.nn.layer import SparseLayer


def to_sparse(model: nn.Module, masks: Mapping[str, Tensor], sample: Any, densest: float | None = None) -> list[str]:
    """Replace every `torch.nn.Linear` that has a mask by a SparseLinear, in place; the others stay as they are.

    masks: bool tensors by the weight's name, True where a connection exists. sample: an input of the model;
    layers that it does not pass as modules, because their weights are used in another way, stay dense, and weights that
    several modules share. densest: the density above which a layer stays dense because its zeros would not pay; None
    for each kind's own. Returns the names of the weights that are sparse now; optimizers have to be made anew.
    """
    called = called_layers(model, sample)
    modules = {f"{name}.weight".lstrip("."): module for name, module in model.named_modules()}
    done = []
    for name, mask in masks.items():
        module = modules.get(name)
        kind = sparse_kind(module) if module in called else None
        if module is None or kind is None or module is model:
            continue
        if int(mask.sum()) <= (kind.densest if densest is None else densest) * mask.numel():
            model.set_submodule(name.removesuffix(".weight"), kind.from_dense(module, mask))
            done.append(name)
    return done


def sparse_kind(module: nn.Module) -> type[SparseLayer] | None:
    """What can take a dense layer's place; None where nothing can."""
    return next((kind for kind in SparseLayer.__subclasses__() if kind.can_stand_for(module)), None)


def called_layers(model: nn.Module, sample: Any) -> set[nn.Module]:
    """The layers that could be sparse and that one forward pass calls, with weights of their own.

    The model is left as it was.
    """
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    called: set[nn.Module] = set()
    layers = [module for module in model.modules() if sparse_kind(module)]
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in layers]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return {module for module in called if shared[id(module.weight)] == 1}


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The layers that hold their non-zeros only, by the weight's name."""
    return {f"{name}.weight".lstrip("."): m for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def to_dense(model: nn.Module) -> None:
    """Replace every sparse layer by the torch layer of the same weights, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLayer):
            model.set_submodule(name, module.dense_layer())
