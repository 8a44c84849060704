"""What sparse layers have in common: a list of values in the place of a dense weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.errors import SparsityError


class AnyPattern(Protocol):
    """Where the non-zeros of a layer are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight, [out, in, kernel...]."""

    @property
    def count(self) -> int:
        """Non-zeros."""

    def positions(self) -> np.ndarray:
        """Flat indices into the dense weight, int64 [nnz], in the order of the values."""


class SparseLayer(nn.Module, ABC):
    """A layer whose weight exists at its non-zeros only; `weight` is [nnz], in the order of `positions()`."""

    densest: float  # the density above which a layer stays dense, because its zeros would not pay
    pattern: AnyPattern
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self._products: Any = None  # native code for the pattern
        self.tape: list[tuple[Tensor, Tensor]] | None = None  # x and dy of each backward, while recorded

    @staticmethod
    @abstractmethod
    def can_stand_for(module: nn.Module) -> bool:
        """Whether `like` can make of this dense layer what computes the same."""

    @classmethod
    @abstractmethod
    def like(cls, module: nn.Module, positions: Tensor) -> Self:
        """A new layer of a dense one's sizes, with random values at these positions, int64 [nnz] ascending."""

    @abstractmethod
    def hollow(self) -> nn.Module:
        """The dense layer of the same sizes, with a weight and a bias that nothing was written to."""

    @abstractmethod
    def arrange(self, positions: np.ndarray) -> tuple[AnyPattern, np.ndarray]:
        """The pattern with non-zeros at flat indices, int64 [nnz] ascending, and their order in it."""

    @abstractmethod
    def dense_gradient(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the gradient of the weight from what the tape holds, [rows, entries of a row]."""

    @classmethod
    def from_dense(cls, module: nn.Module, mask: Tensor) -> Self:
        """The layer that computes what a dense one does with its weight masked. mask: bool of the weight's shape."""
        positions = mask.detach().cpu().flatten().nonzero().squeeze(1)
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        with torch.random.fork_rng(devices=[]):
            layer = cls.like(module, positions)
        with torch.no_grad():
            layer.weight.copy_(weight.detach().cpu().flatten()[layer.positions()])
            if layer.bias is not None and isinstance(bias, Tensor):
                layer.bias.copy_(bias)
        return layer.to(weight).train(module.training)

    def positions(self) -> Tensor:
        """Flat indices into the dense weight, int64 [nnz], in the order of `weight`."""
        return torch.from_numpy(self.pattern.positions())

    def ascending(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions in ascending order, and where the value of each stands: int64 [nnz] both."""
        positions = self.pattern.positions()
        order = np.argsort(positions, kind="stable")
        return positions[order], order

    def to_dense(self) -> Tensor:
        """The dense weight [out, in, kernel...], a new tensor of its size."""
        dense = self.weight.new_zeros(math.prod(self.pattern.shape))
        dense[self.positions().to(self.weight.device)] = self.weight.detach()
        return dense.view(self.pattern.shape)

    def dense_layer(self) -> nn.Module:
        """The torch layer that computes the same."""
        module = self.hollow()
        module.weight = nn.Parameter(self.to_dense())
        module.register_parameter("bias", self.bias)
        return module.train(self.training)

    def set_pattern(self, pattern: Any) -> None:
        """Let the values stand at other positions, as many as before. What they are is the caller's affair."""
        assert pattern.count == self.pattern.count and pattern.shape == self.pattern.shape
        self.pattern, self._products = pattern, None

    def arranged(self, positions: Tensor, values: Tensor) -> Tensor:
        """Take over positions, int64 [nnz] in any order; returns the values beside them in the pattern's order.

        Where there are more or fewer than the layer has, nothing is done, and torch refuses the values.
        """
        if len(positions) != self.pattern.count:
            return values
        ascending, order = positions.sort()
        pattern, inner = self.arrange(checked(ascending, math.prod(self.pattern.shape)))
        self.set_pattern(pattern)
        return values[order.to(values.device)[torch.from_numpy(inner)]]

    def extra_repr(self) -> str:
        size = math.prod(self.pattern.shape)
        density = f"density={self.pattern.count / max(1, size):.4f}"
        return f"shape={self.pattern.shape}, nonzeros={self.pattern.count}, {density}, bias={self.bias is not None}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}positions"] = self.positions()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Values may come in any order, with their positions beside them."""
        key = f"{prefix}positions"
        if key in state and f"{prefix}weight" in state:
            state = {**state, f"{prefix}weight": self.arranged(state[key], state[f"{prefix}weight"])}
        super()._load_from_state_dict(state, prefix, *rest)
        unexpected = rest[-2]
        if key in unexpected:
            unexpected.remove(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_products": None, "tape": None}  # addresses are of this process


def positions_key(weight: str) -> str:
    """The name of a sparse weight's positions in a state dict: fc.positions, and rnn.weight_ih_l0_positions."""
    path, _, name = weight.rpartition("weight")
    return f"{weight}_positions" if name or (path and not path.endswith(".")) else f"{path}positions"


def checked(positions: Tensor | np.ndarray, size: int) -> np.ndarray:
    """Positions as an array. Raises SparsityError where they are not flat indices, ascending and each once."""
    array = np.ascontiguousarray(positions, np.int64)
    if array.ndim != 1 or (len(array) and (array[0] < 0 or array[-1] >= size or (np.diff(array) <= 0).any())):
        raise SparsityError(
            f"The positions of a sparse layer must be flat indices from 0 to {size - 1}, ascending and each once. "
            f"Sort them, and check that they count through the weight row by row."
        )
    return array
