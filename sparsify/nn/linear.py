"""A linear layer that holds its non-zeros only, in parameter, gradient and optimizer slots."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.nn.layer import SparseLayer, checked
from sparsify.nn.pattern import Pattern, build_pattern
from sparsify.nn.products import Products, lanes, plain, planes


class SparseLinear(SparseLayer):
    """y = x W^T + b with W [out, in] zero except at `positions`; what `torch.nn.Linear` is for dense weights.

    `weight` is [nnz], in the order of `positions()`. On the CPU in float32 the products are native code, and
    everywhere else plain torch operations. Gradients exist for the non-zeros alone, and no tensor of W's size is
    ever made. Outputs are the transpose of planes [out, batch]: what is computed element by element between two such
    layers keeps that layout, and nothing is transposed on the way.
    """

    densest = 0.4  # above it masked products took as long or less: 100 to 2048 neurons, batches of 16 to 128
    pattern: Pattern

    def __init__(self, in_features: int, out_features: int, positions: Tensor | np.ndarray, bias: bool = True) -> None:
        """positions: flat indices of the non-zeros into W, int64 [nnz], ascending and each once.

        Values and bias start as those of `torch.nn.Linear` do. Raises SparsityError for positions that break the rule.
        """
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.pattern, _ = build_pattern(checked(positions, in_features * out_features), (out_features, in_features))
        self.weight = nn.Parameter(torch.empty(self.pattern.count))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @staticmethod
    def can_stand_for(module: nn.Module) -> bool:
        return type(module) is nn.Linear

    @classmethod
    def like(cls, module: nn.Module, positions: Tensor) -> Self:
        assert isinstance(module, nn.Linear)
        return cls(module.in_features, module.out_features, positions, module.bias is not None)

    def hollow(self) -> nn.Module:
        return nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=self.bias is not None)

    def arrange(self, positions: np.ndarray) -> tuple[Pattern, np.ndarray]:
        return build_pattern(positions, self.pattern.shape)

    def ascending(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pattern.ascending()

    def dense_gradient(self, start: int, stop: int) -> Tensor:
        assert self.tape
        (x, errors), *more = self.tape
        total = errors[start:stop] @ x.t()
        for x, errors in more:
            total.addmm_(errors[start:stop], x.t())
        return total

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]; the output's leading dimensions lie in memory in the order of the input's."""
        strides = x.stride()
        order = sorted(range(x.ndim - 1), key=lambda dimension: -strides[dimension])
        turned = x.permute(*order, -1)  # so that what lies in planes is not copied
        flat = turned.reshape(-1, self.in_features)
        if x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu":
            if self._products is None:
                self._products = Products(self.pattern)
            result = _Product.apply(flat, self.weight, self.bias, self, self._products)
        else:
            result = plain(flat, self.weight, self.bias, self.pattern)
        back = sorted(range(len(order)), key=order.__getitem__)
        return result.reshape(*turned.shape[:-1], self.out_features).permute(*back, -1)


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
