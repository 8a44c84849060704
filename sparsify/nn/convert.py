"""From a torch model with masks to one that holds its non-zeros only, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.nn.linear import SparseLinear

DENSEST = (
    0.4  # above it dense, masked products took as long or less: layers of 100 to 2048 neurons, batches of 16 to 128
)


def to_sparse(model: nn.Module, masks: Mapping[str, Tensor], sample: Any, densest: float = DENSEST) -> list[str]:
    """Replace every `torch.nn.Linear` that has a mask by a SparseLinear, in place; the others stay as they are.

    masks: bool tensors by the weight's name, True where a connection exists. sample: an input of the model; linear
    layers that it does not pass as modules, because their weights are used in another way, stay dense, and weights that
    several modules share. densest: the density above which a layer stays dense because its zeros would not pay.
    Returns the names of the weights that are sparse now; optimizers have to be made anew.
    """
    called = called_linears(model, sample)
    modules = {f"{name}.weight".lstrip("."): module for name, module in model.named_modules()}
    done = []
    for name, mask in masks.items():
        module = modules.get(name)
        if type(module) is not nn.Linear or module is model or module not in called:
            continue
        if int(mask.sum()) <= densest * mask.numel():
            model.set_submodule(name.removesuffix(".weight"), SparseLinear.from_dense(module, mask))
            done.append(name)
    return done


def called_linears(model: nn.Module, sample: Any) -> set[nn.Module]:
    """The linear layers that one forward pass calls, with weights of their own. The model is left as it was."""
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    called: set[nn.Module] = set()
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in linears]
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


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """The layers that hold their non-zeros only, by the weight's name."""
    return {f"{name}.weight".lstrip("."): m for name, m in model.named_modules() if isinstance(m, SparseLinear)}


def to_dense(model: nn.Module) -> None:
    """Replace every SparseLinear by the `torch.nn.Linear` of the same weights, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseLinear):
            linear = nn.utils.skip_init(
                nn.Linear, module.in_features, module.out_features, bias=module.bias is not None
            )
            linear.weight = nn.Parameter(module.to_dense())
            linear.bias = module.bias
            model.set_submodule(name, linear.train(module.training))
