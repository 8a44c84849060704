"""Which parameters a network multiplies by: seen in the operations of one forward pass, whatever module calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

# The matrix [in, out] among the arguments of a product of matrices. A parameter on the left is an input: a learned
# query, or a token.
RIGHT_OPERAND = {"mm": 1, "bmm": 1, "addmm": 2, "baddbmm": 2, "addbmm": 2}
RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn")  # whole layers of an RNN in one operation
COPIES = ("cat", "clone", "_to_copy")  # a copy of weights, whole or below each other, stands for them


@dataclass
class Use:
    """What one parameter was used for."""

    name: str
    shape: tuple[int, ...]
    multiplications: int = 0  # by its entries, in the whole pass
    embeds: bool = False  # rows were looked up
    axis: int = 0  # dimension of the outputs
    groups: int = 1


def watch(model: nn.Module, run: Callable[[], Any]) -> list[Use]:
    """The weights that `run` multiplies by or looks up in, in the order of their first use.

    A copy is a use: what a recurrent kernel does first with its weights is not the same on all devices.

    run: one forward pass. The model is in evaluation mode meanwhile and then as it was. A weight that is
    parametrized stands under the name of the parameter of its shape, where zeros in that are zeros in the weight.
    """
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation
        with torch.no_grad(), parametrize.cached(), _Watch(_weights(model)) as seen:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode
    return sorted(seen.uses.values(), key=lambda use: seen.order[use.name])


@dataclass(frozen=True, eq=False)
class _Weight:
    """Parameters below each other in one tensor; one alone, unless they were concatenated."""

    tensor: Tensor
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def _weights(model: nn.Module) -> list[_Weight]:
    """Every parameter with more than one dimension, and the weights that are computed from one."""
    found = [_Weight(p, (name,), (tuple(p.shape),)) for name, p in model.named_parameters() if p.ndim > 1]
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for attribute in module.parametrizations:
                found += _parametrized(module, path, attribute)
    return found


def _parametrized(module: nn.Module, path: str, attribute: str) -> Iterator[_Weight]:
    weight = getattr(module, attribute)
    chain: Any = getattr(module.parametrizations, attribute)
    originals = {
        name: parameter for name, parameter in chain.named_parameters(recurse=False) if parameter.shape == weight.shape
    }
    if len(originals) == 1 and weight.ndim > 1:
        ((name, parameter),) = originals.items()
        if _keeps_zeros(chain, parameter):
            own = f"{path}." if path else ""
            shape = tuple(parameter.shape)
            yield _Weight(weight, (f"{own}parametrizations.{attribute}.{name}",), (shape,))


def _keeps_zeros(chain: Callable[[], Tensor], parameter: nn.Parameter) -> bool:
    """Whether the weight is 0 wherever its parameter is, as under weight norm and spectral norm."""
    if parameter.is_meta:
        return True
    before = parameter.detach().clone()
    zero = torch.arange(parameter.numel(), device=parameter.device).view(parameter.shape) % 3 == 0
    with torch.no_grad():
        try:
            parameter.masked_fill_(zero, 0)
            return not bool(chain()[zero].any())
        finally:
            parameter.copy_(before)


@dataclass
class _Watch(TorchDispatchMode):
    """Notes each operation on one of the weights. Tensors are told apart by the memory that they share."""

    weights: Iterable[_Weight]
    uses: dict[str, Use] = field(default_factory=dict)
    order: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._known = {_memory(weight.tensor): weight for weight in self.weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in RIGHT_OPERAND:
            self._product(args[RIGHT_OPERAND[name]], out)
        elif name == "linear":
            self._product(args[1].mT, out)
        elif name == "convolution":
            self._convolution(args, out)
        elif name == "embedding":
            for use in self._find(args[0]):
                use.embeds = True
        elif name in RECURRENT:
            steps = args[0].numel() // args[0].shape[-1]
            for weight in _flatten(args[1:]):
                if weight.ndim == 2:
                    self._count(self._find(weight), weight, steps * weight.numel())
        elif name in COPIES:
            self._copy(list(_flatten(args)), out)
        return out

    def _product(self, right: Tensor, out: Tensor) -> None:
        """right: [..., in, out]"""
        weight = self._known.get(_memory(right))
        if weight is None or weight.tensor.ndim != 2:
            return
        if weight.tensor.shape[1] == 1:  # both dimensions have the same stride
            axis = int(right.shape[-2] > 1)
        else:
            axis = int(right.stride(-1) != weight.tensor.stride(0))
        uses = self._find(right)
        for use in uses:
            use.axis = axis
        self._count(uses, right, out.numel() * right.shape[-2])

    def _convolution(self, args: Any, out: Tensor) -> None:
        inputs, weight, transposed, groups = args[0], args[1], args[6], args[8]
        uses = self._find(weight)
        for use in uses:
            use.axis, use.groups = int(transposed), groups
        channels, positions = weight.shape[0], inputs if transposed else out  # that each weight meets once
        self._count(uses, weight, positions.numel() // channels * weight.numel())

    def _count(self, uses: list[Use], weight: Tensor, multiplications: int) -> None:
        whole = sum(math.prod(use.shape) for use in uses)  # `weight` may be a part of it
        for use in uses:
            use.multiplications += multiplications * math.prod(use.shape) // whole

    def _find(self, tensor: Tensor) -> list[Use]:
        weight = self._known.get(_memory(tensor))
        if weight is None:
            return []
        self._note(weight.names)
        named = zip(weight.names, weight.shapes, strict=True)
        return [self.uses.setdefault(name, Use(name, shape)) for name, shape in named]

    def _note(self, names: Iterable[str]) -> None:
        for name in names:
            self.order.setdefault(name, len(self.order))

    def _copy(self, sources: list[Tensor], out: Tensor) -> None:
        found = [self._known.get(_memory(source)) for source in sources]
        whole = [w for w, s in zip(found, sources, strict=True) if w and w.tensor.stride() == s.stride()]
        if sources and len(whole) == len(sources) and out.ndim > 1:
            names = tuple(name for weight in whole for name in weight.names)
            shapes = tuple(shape for weight in whole for shape in weight.shapes)
            self._note(names)
            # Kept, so that its memory does not come to belong to another tensor.
            self._known[_memory(out)] = _Weight(out, names, shapes)


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors and other programs' kinds have no storage
        return -1


def _flatten(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flatten(value)
