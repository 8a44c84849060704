"""Building a network without its large weights: what fills them is noted, and repeated later a part at a time.

Random numbers are drawn and dropped meanwhile, so that whatever comes after them is drawn as if they had been kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 1 << 20  # entries; tensors of more are deferred
_PART = 1 << 18  # entries filled at a time; a multiple of 16, which normal numbers are drawn in groups of
_RANDOM = {"aten::uniform_", "aten::normal_"}
_EACH = {f"aten::{name}_" for name in ("fill", "zero", "mul", "add", "sub", "div", "clamp", "erfinv")}
_SAME = {"aten::detach", "aten::alias"}


class NotDeferred(Exception):
    """Something is done to a large tensor that cannot be done to its parts."""


@dataclass(frozen=True, eq=False)
class _Fill:
    """One operation in place."""

    operation: Any
    arguments: tuple[Any, ...]
    state: Tensor | None  # of torch's generator before it, where it is random


class Later(Tensor):
    """A tensor of which only the shape exists, and what is to fill it."""

    fills: list[_Fill]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shape: torch.Size, dtype: torch.dtype, fills: list[_Fill]) -> Later:
        made: Later = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device="cpu")  # type: ignore
        made.fills = fills
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        name, own = function._schema.name, args[0]
        if name in _SAME and isinstance(own, Later):
            return Later(own.shape, own.dtype, own.fills)
        given = (*args[1:], *(kwargs or {}).values())
        if name not in _RANDOM | _EACH or any(
            isinstance(g, Later) or (isinstance(g, Tensor) and g.ndim) for g in given
        ):
            raise NotDeferred(name)
        own.fills.append(_Fill(function, args[1:], torch.get_rng_state() if name in _RANDOM else None))
        if name in _RANDOM:
            for _ in _drawn(function, args[1:], own.numel(), own.dtype):
                pass
        return own

    def entries(self, positions: Tensor) -> Tensor:
        """What stands at flat positions, int64 ascending: [positions]. Raises NotDeferred where nothing filled it."""
        values = torch.zeros(len(positions), dtype=self.dtype)
        if not self.fills:
            raise NotDeferred("empty")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for fill in self.fills:
                if fill.state is None:
                    fill.operation(values, *fill.arguments)
                    continue
                torch.set_rng_state(fill.state)
                for start, part in _drawn(fill.operation, fill.arguments, self.numel(), self.dtype):
                    edges = torch.searchsorted(positions, torch.tensor([start, start + len(part)])).tolist()
                    values[slice(*edges)] = part[positions[slice(*edges)] - start]
        return values

    def whole(self) -> Tensor:
        """The tensor in full."""
        return self.entries(torch.arange(self.numel())).view(self.shape)


class Deferred(TorchDispatchMode):
    """Inside, large empty tensors on the CPU are Later."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_cpu = kwargs.get("device") in (None, torch.device("cpu"))
        if function._schema.name == "aten::empty" and on_cpu and math.prod(args[0]) > LARGE:
            return Later(torch.Size(args[0]), kwargs.get("dtype") or torch.get_default_dtype(), [])
        return function(*args, **kwargs)


def _drawn(operation: Any, arguments: tuple[Any, ...], size: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Where each part starts, and its numbers. The last has 16 at least: fewer are drawn in another way."""
    start = 0
    for stop in [*range(_PART, size - 15, _PART), size]:
        yield start, operation(torch.empty(stop - start, dtype=dtype), *arguments)
        start = stop
