"""Tensors that are computed when it is known what they are for, so that one pass over memory does both."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsify.errors import SparsityError

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_ADD = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_, Tensor.add_, Tensor.__iadd__}
_LOOKS = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")} | {Tensor.size, Tensor.dim}


class Todo:
    """An operation on x that is put off; a subclass says what else can be done in the same pass."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._version = None if x.is_inference() else x._version

    def result(self) -> Tensor:
        """The plain result."""
        raise NotImplementedError

    def rectified(self) -> Tensor | None:
        """The result behind a ReLU; None where that is not one pass."""
        return None

    def added(self, other: Tensor) -> Tensor | None:
        """The result plus another tensor, which may be pending; None where that is not one pass."""
        return None

    def check(self) -> None:
        """Raises SparsityError where x is no longer what the operation was asked of."""
        if self._version is not None and self.x._version != self._version:
            raise SparsityError(
                "The input of a batch norm or sparse convolution was changed in place before its output was used. "
                "The output is computed with what uses it; change a copy of the input, or use the output first."
            )


class Pending(Tensor):
    """The output of an operation, computed when it is known what takes it: a ReLU or a sum in one pass with it.

    Every other function of torch gets the plain tensor in its place. The graph of derivatives goes through it all the
    same, for what autograd is told without a function of torch.
    """

    todo: Todo
    done: Tensor | None  # the plain tensor, or what an operation in place made of it
    token: Tensor | None  # a stand-in whose gradient reaches `done` in one pass with that of a norm which took it

    @classmethod
    def of(cls, todo: Todo, shape: tuple[int, ...], strides: tuple[int, ...]) -> Self:
        """A float32 tensor on the CPU."""
        made: Any = Tensor._make_wrapper_subclass(cls, shape, strides=strides, dtype=torch.float32)
        made.todo, made.done, made.token = todo, None, None
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first: Any = args[0] if args else None
        kwargs = kwargs or {}
        if isinstance(first, Pending) and function in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        result = None
        if function in _RELU and _waits(first):
            result = first.todo.rectified()
        elif function in _ADD and len(args) == 2 and not kwargs:
            result = _sum(first, args[1], function in _IN_PLACE)
        if result is None:
            return function(*map(plain, args), **{key: plain(value) for key, value in kwargs.items()})
        if function in _IN_PLACE or kwargs.get("inplace") or (function is F.relu and args[1:] == (True,)):
            first.done = result
        return result

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Only operations that are asked for beneath torch's functions come here; they see no derivatives."""
        with torch.no_grad():
            return function(*map(plain, args), **{key: plain(value) for key, value in (kwargs or {}).items()})


def plain(value: Any) -> Any:
    """The value with what is pending in it computed."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if isinstance(value, Pending):
        if value.done is None:
            value.done = value.todo.result()
        return plain(value.done)
    return value


def _waits(value: Any) -> bool:
    return isinstance(value, Pending) and value.done is None


def _sum(first: Any, second: Any, in_place: bool) -> Tensor | None:
    """In one pass with the operation that one of the two waits for; in place it is the first's."""
    for one, other in ((first, second),) if in_place else ((second, first), (first, second)):
        if _waits(one) and isinstance(other, Tensor):
            result: Tensor | None = one.todo.added(other)
            if result is not None:
                return result
    return None
