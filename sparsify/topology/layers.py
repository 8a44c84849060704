"""The layers that can be sparse, found by running the model once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsify.topology.costs import Layer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find_layers(model: nn.Module, sample: Tensor) -> list[Layer]:
    """Convolution and linear weights in the order in which a forward pass uses them.

    sample: one input, [1, ...]. The model is run in evaluation mode and left as it was. Biases, norms and
    embeddings are not among the results; a weight that is used twice appears once with its uses added. A module
    that multiplies by the weights of linear layers without calling them, as a recurrent one does by those of its
    gates, lists them as `uncalled_linears`; each is used once for every vector of the module's output.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Layer] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        for linear in getattr(module, "uncalled_linears", ()):
            record(linear, inputs, output)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            return
        name, uses = names[weight], output.numel() // weight.shape[0] // len(sample)
        earlier = found[name].positions if name in found else 0
        depthwise = getattr(module, "groups", 1) > 1 and weight.shape[1] == 1
        found[name] = Layer(name, tuple(weight.shape), earlier + uses, sparse=not depthwise)

    kinds = (nn.Linear, *CONVOLUTIONS)
    used = [module for module in model.modules() if isinstance(module, kinds) or hasattr(module, "uncalled_linears")]
    hooks = [module.register_forward_hook(record) for module in used]
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
    return list(found.values())
