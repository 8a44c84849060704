"""A linear layer that holds its non-zeros only, in parameter, gradient and optimizer slots."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.errors import SparsityError
from sparsify.nn.pattern import Pattern, build_pattern
from sparsify.nn.products import Products, lanes, plain, planes


class SparseLinear(nn.Module):
    """y = x W^T + b with W [out, in] zero except at `positions`; what `torch.nn.Linear` is for dense weights.

    `weight` is [nnz], in the order of `positions()`. On the CPU in float32 the products are native code, and
    everywhere else plain torch operations. Gradients exist for the non-zeros alone, and no tensor of W's size is
    ever made. Outputs are the transpose of planes [out, batch]: what is computed element by element between two such
    layers keeps that layout, and nothing is transposed on the way.
    """

    def __init__(self, in_features: int, out_features: int, positions: Tensor | np.ndarray, bias: bool = True) -> None:
        """positions: flat indices of the non-zeros into W, int64 [nnz], ascending and each once.

        Values and bias start as those of `torch.nn.Linear` do. Raises SparsityError for positions that break the rule.
        """
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.pattern, _ = build_pattern(_checked(positions, in_features * out_features), (out_features, in_features))
        self.weight = nn.Parameter(torch.empty(self.pattern.count))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self._products: Products | None = None
        self.tape: list[tuple[Tensor, Tensor]] | None = None  # planes of x and dy of each backward, while recorded

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor) -> SparseLinear:
        """The layer that computes what `linear` does with its weight masked. mask: bool [out, in]."""
        positions = mask.detach().cpu().flatten().nonzero().squeeze(1)
        with torch.random.fork_rng():
            layer = cls(linear.in_features, linear.out_features, positions, linear.bias is not None)
        with torch.no_grad():
            place = torch.from_numpy(layer.pattern.positions())
            layer.weight.copy_(linear.weight.detach().cpu().flatten()[place])
            if layer.bias is not None:
                layer.bias.copy_(linear.bias)
        return layer.to(linear.weight.device).train(linear.training)

    def positions(self) -> Tensor:
        """Flat indices into W, int64 [nnz], in the order of `weight`."""
        return torch.from_numpy(self.pattern.positions())

    def to_dense(self) -> Tensor:
        """W [out, in], a new tensor of the dense weight's size."""
        dense = self.weight.new_zeros(self.out_features * self.in_features)
        dense[self.positions().to(self.weight.device)] = self.weight.detach()
        return dense.view(self.out_features, self.in_features)

    def set_pattern(self, pattern: Pattern) -> None:
        """Let the values stand at other positions, as many as before. What they are is the caller's affair."""
        assert pattern.count == self.pattern.count and pattern.shape == self.pattern.shape
        self.pattern, self._products = pattern, None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        flat = x.reshape(-1, self.in_features)
        if x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu":
            if self._products is None:
                self._products = Products(self.pattern)
            result = _Product.apply(flat, self.weight, self.bias, self, self._products)
        else:
            result = plain(flat, self.weight, self.bias, self.pattern)
        return result if x.ndim == 2 else result.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        density = self.pattern.count / max(1, self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nonzeros={self.pattern.count}, "
            f"density={density:.4f}, bias={self.bias is not None}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}positions"] = self.positions()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Values may come in any order, with their positions beside them."""
        key = f"{prefix}positions"
        if key in state and f"{prefix}weight" in state:
            positions, order = state[key].sort()
            if len(positions) == self.pattern.count:
                pattern, inner = build_pattern(_checked(positions, math.prod(self.pattern.shape)), self.pattern.shape)
                self.set_pattern(pattern)
                weight = state[f"{prefix}weight"]
                state = {**state, f"{prefix}weight": weight[order.to(weight.device)[torch.from_numpy(inner)]]}
        super()._load_from_state_dict(state, prefix, *rest)
        unexpected = rest[-2]
        if key in unexpected:
            unexpected.remove(key)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_products": None, "tape": None}  # addresses are of this process


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: SparseLinear, products: Products
    ) -> Tensor:
        where = lanes(len(x), products.target)
        columns = planes(x, where)
        start = bias if bias is not None else x.new_zeros(layer.out_features)
        ctx.save_for_backward(columns, weight)
        ctx.layer, ctx.products, ctx.where, ctx.has_bias = layer, products, where, bias is not None
        return products.forward(columns, weight.contiguous(), start.contiguous(), where)[:, : len(x)].t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        columns, weight = ctx.saved_tensors
        errors = planes(dy, ctx.where)
        if ctx.layer.tape is not None:
            ctx.layer.tape.append((columns, errors))
        wants_dx = ctx.needs_input_grad[0]
        dw, dx = ctx.products.backward(columns, errors, weight.contiguous(), ctx.where, wants_dx)
        db = errors.sum(1) if ctx.has_bias else None
        return dx[:, : ctx.where.batch].t() if wants_dx else None, dw, db, None, None


def _checked(positions: Tensor | np.ndarray, size: int) -> np.ndarray:
    array = np.ascontiguousarray(positions, np.int64)
    if array.ndim != 1 or (len(array) and (array[0] < 0 or array[-1] >= size or (np.diff(array) <= 0).any())):
        raise SparsityError(
            f"The positions of a sparse layer must be flat indices from 0 to {size - 1}, ascending and each once. "
            f"Sort them, and check that they count through the weight row by row."
        )
    return array
