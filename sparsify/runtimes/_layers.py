"""Replacing layers of a torch module by sparse ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sparsify.architectures._recurrent import Recurrent

LEAST_SPARSITY = 0.7  # below it the dense product is left alone


def replace_layers(
    module: nn.Module, sparse: Callable[[nn.Linear | nn.Conv2d], nn.Module], least: float = LEAST_SPARSITY
) -> list[str]:
    """Replace, in place, the linear layers and 1x1 convolutions that have that share of zeros; returns their names.

    The gates of recurrent layers are left alone: their weights go to torch's kernels, and the layers are not called.
    """
    gates = {part for layer in module.modules() if isinstance(layer, Recurrent) for part in layer.modules()}
    replaced = []
    for name, layer in list(module.named_modules()):
        if name and layer not in gates and is_product(layer) and float((layer.weight == 0).float().mean()) >= least:
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, sparse(layer))
            replaced.append(name)
    return replaced


def is_product(layer: nn.Module) -> bool:
    """Whether a layer is one matrix product: a linear layer, or a 1x1 convolution of stride 1 in one group."""
    if type(layer) is nn.Conv2d:
        plain = (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        return plain and layer.padding in ((0, 0), "valid", "same")
    return type(layer) is nn.Linear
