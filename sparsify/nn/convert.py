"""From a torch model with masks to one that holds its non-zeros only, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sparsify.architectures._recurrent import Recurrent
from sparsify.nn.conv import SparseConv2d
from sparsify.nn.layer import SparseLayer
from sparsify.nn.linear import SparseLinear
from sparsify.nn.norm import PlanesBatchNorm2d
from sparsify.nn.recurrent import SparseRecurrent
from sparsify.nn.rnn import SparseRNN

FEW = 64  # weights of each output channel: multiplying by them costs less than copying activations to another order


def to_sparse(model: nn.Module, masks: Mapping[str, Tensor], sample: Any, densest: float | None = None) -> list[str]:
    """Replace every layer that has a mask by its sparse counterpart, in place; the others stay as they are.

    `torch.nn.Linear` becomes a SparseLinear, `torch.nn.Conv2d` a SparseConv2d, `torch.nn.GRU` and `torch.nn.LSTM` a
    SparseRNN; the GRU and LSTM of our architectures become a SparseRecurrent. An LSTM with projections and a GRU or
    LSTM that gets packed sequences stay dense, as do cells that a model calls step by step. Beside sparse convolutions
    batch norms take the order of their activations, and so do convolutions with few weights, whatever their density, so
    that less is copied from one order to the other.
    masks: bool tensors by the weight's name, True where a connection exists. sample: an input of the model;
    layers that it does not pass as modules, because their weights are used in another way, stay dense, and weights that
    several modules share. densest: the density above which a layer stays dense because its zeros would not pay; None
    for each kind's own. Returns the names of the weights that are sparse now; optimizers have to be made anew.
    """
    names = sparse_names(model, {name: int(mask.sum()) for name, mask in masks.items()}, sample, densest)
    chosen = set(names)
    for path, module in list(model.named_modules()):
        found = {own: f"{path}.{own}" for own in _weights(module) if f"{path}.{own}" in chosen}
        if kind := sparse_kind(module):
            if found:
                model.set_submodule(path, kind.from_dense(module, masks[found["weight"]]))
        elif found and SparseRNN.can_stand_for(module):
            assert isinstance(module, nn.RNNBase)
            model.set_submodule(path, SparseRNN.from_dense(module, {own: masks[name] for own, name in found.items()}))
    adopt_gates(model)
    adopt_norms(model)
    return names


def sparse_names(model: nn.Module, counts: Mapping[str, int], sample: Any, densest: float | None = None) -> list[str]:
    """The weights among `counts`, which says how many connections they have, that `to_sparse` makes sparse.

    Nothing is computed where model and sample are on torch's meta device.
    """
    called = called_layers(model, sample)
    found: set[str] = set()
    for path, module in model.named_modules():
        if module is model or module not in called:
            continue
        weights = {f"{path}.{own}": weight for own, weight in _weights(module).items()}
        limit = (sparse_kind(module) or SparseLinear).densest if densest is None else densest
        size = sum(weight.numel() for weight in weights.values())  # a layer's gates are sparse together or not at all
        if weights.keys() <= counts.keys() and sum(counts[name] for name in weights) <= limit * size:
            found |= weights.keys()
    convolutions = {f"{path}.weight": module for path, module in model.named_modules() if type(module) is nn.Conv2d}
    if found & convolutions.keys() or _has_sparse_convolutions(model):
        here = {name: module for name, module in convolutions.items() if name in counts and module in called}
        found |= {name for name, module in here.items() if counts[name] <= FEW * module.out_channels}
    return [name for name in counts if name in found]


def sparse_kind(module: nn.Module) -> type[SparseLayer] | None:
    """What can take a dense layer's place; None where nothing can."""
    return next((kind for kind in SparseLayer.__subclasses__() if kind.can_stand_for(module)), None)


def called_layers(model: nn.Module, sample: Any) -> set[nn.Module]:
    """The layers that could be sparse and that one forward pass calls, with weights of their own.

    The model is left as it was.
    """
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    called: set[nn.Module] = set()
    packed: set[nn.Module] = set()

    def note(module: nn.Module, given: Any) -> None:
        (packed if any(isinstance(part, PackedSequence) for part in given) else called).add(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if _weights(module)]
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
    own = {module for module in called if all(shared[id(weight)] == 1 for weight in _weights(module).values())}
    return own - packed


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that become sparse where a module does, by their names in it; none of a module that cannot."""
    if type(module) is Recurrent or SparseRNN.can_stand_for(module):
        return {name: weight for name, weight in module.named_parameters() if weight.ndim == 2}
    return {"weight": cast(Tensor, module.weight)} if sparse_kind(module) else {}


def adopt_gates(model: nn.Module) -> None:
    """Replace every recurrent layer whose gates are sparse by a SparseRecurrent, in place."""
    for name, module in list(model.named_modules()):
        if type(module) is Recurrent and sparse_layers(module):
            model.set_submodule(name, SparseRecurrent.adopt(module))


def adopt_norms(model: nn.Module) -> None:
    """Replace every batch norm of a model that has sparse convolutions by a PlanesBatchNorm2d, in place."""
    for name, module in list(model.named_modules()) if _has_sparse_convolutions(model) else ():
        if type(module) is nn.BatchNorm2d:
            model.set_submodule(name, PlanesBatchNorm2d.like(module))


def _has_sparse_convolutions(model: nn.Module) -> bool:
    return any(isinstance(module, SparseConv2d) for module in model.modules())


def sparse_layers(model: nn.Module) -> dict[str, SparseLayer]:
    """The layers that hold their non-zeros only, by the weight's name."""
    found: dict[str, SparseLayer] = {}
    for path, module in model.named_modules():
        own = {"weight": module} if isinstance(module, SparseLayer) else {}
        own |= module.gates if isinstance(module, SparseRNN) else {}
        found |= {f"{path}.{name}".lstrip("."): layer for name, layer in own.items()}
    return found


def to_dense(model: nn.Module) -> None:
    """Replace every sparse layer, and batch norms that were replaced beside them, by torch's own, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (SparseLayer, SparseRNN, PlanesBatchNorm2d)):
            model.set_submodule(name, module.dense_layer())
    for name, module in list(model.named_modules()):
        if isinstance(module, SparseRecurrent):
            model.set_submodule(name, module.released())
