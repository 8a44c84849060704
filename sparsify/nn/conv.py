"""A convolution that holds its non-zeros only, in parameter, gradient and optimizer slots."""

from __future__ import annotations

import math
from copy import copy
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from sparsify.engine.encode import encoder
from sparsify.engine.target import host
from sparsify.errors import SparsityError
from sparsify.nn.conv_pattern import ConvPattern, Geometry
from sparsify.nn.conv_products import ConvProducts, are_planes, images, planes, sizes_of, strides_of
from sparsify.nn.layer import SparseLayer, checked
from sparsify.nn.pending import Pending, Todo, plain

Pair = tuple[int, int]


class SparseConv2d(SparseLayer):
    """What `torch.nn.Conv2d` is for dense kernels, with a kernel [out, in / groups, kh, kw] zero but at `positions`.

    `weight` is [nnz], in ascending order of the positions. On CPUs with AVX2 or AVX-512 the products are native code in
    float32, and everywhere else torch's dense ones. Outputs lie in memory as planes [h, w, out, batch]: what is
    computed element by element between two such layers keeps that order, and nothing is copied on the way.
    """

    densest = 0.7  # there dense products took 0.9 to 1.5 times as long: 32 to 128 channels, batch 128
    pattern: ConvPattern

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Pair, positions: Tensor | np.ndarray,
        stride: int | Pair = 1, padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1, bias: bool = True,
    ) -> None:  # fmt: skip
        """positions: flat indices of the non-zeros into the kernel, int64 [nnz], ascending and each once.

        Values and bias start as those of `torch.nn.Conv2d` do. Raises SparsityError for positions that break the rule.
        """
        super().__init__()
        self.geometry = Geometry(*map(_pair, (kernel_size, stride, padding, dilation)))
        shape = (out_channels, in_channels // groups, *self.geometry.kernel)
        self.pattern = ConvPattern(shape, checked(positions, math.prod(shape)), groups)
        self.weight = nn.Parameter(torch.empty(self.pattern.count))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @staticmethod
    def can_stand_for(module: nn.Module) -> bool:
        native = encoder(host().level) is not None
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return native and plain

    @classmethod
    def like(cls, module: nn.Module, positions: Tensor) -> Self:
        assert isinstance(module, nn.Conv2d)
        walk: Any = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")}
        has_bias = module.bias is not None
        return cls(module.in_channels, module.out_channels, positions=positions, bias=has_bias, **walk)

    def hollow(self) -> nn.Module:
        (out, inner, *_), geometry, groups = self.pattern.shape, self.geometry, self.pattern.groups
        given: Any = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, groups
        return nn.utils.skip_init(nn.Conv2d, inner * groups, out, *given, bias=self.bias is not None)

    def arrange(self, positions: np.ndarray) -> tuple[ConvPattern, np.ndarray]:
        return ConvPattern(self.pattern.shape, positions, self.pattern.groups), np.arange(len(positions))

    def dense_gradient(self, start: int, stop: int) -> Tensor:
        assert self.tape
        (out, inner, *_), groups = self.pattern.shape, self.pattern.groups
        found = []
        for group in range(start * groups // out, -(-stop * groups // out)):
            rows = slice(max(start, group * out // groups), min(stop, (group + 1) * out // groups))
            columns = slice(group * inner, (group + 1) * inner)
            found.append(sum(self._kernel_gradient(x[:, columns], dy[:, rows]) for x, dy in self.tape))
        return torch.cat([torch.as_tensor(part) for part in found]).flatten(1)

    def _kernel_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Of the kernel of some channels, [out, in, kh, kw]."""
        geometry = self.geometry
        shape = (dy.shape[1], x.shape[1], *geometry.kernel)
        given = geometry.stride, geometry.padding, geometry.dilation
        last = torch.channels_last  # from planes it takes two fifths of the time that NCHW takes
        x, dy = x.contiguous(memory_format=last), dy.contiguous(memory_format=last)
        return conv2d_weight(x, shape, dy, *given)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] to [n, out, h', w']. Raises SparsityError for other shapes, as torch's layer does."""
        x = plain(x)
        inputs = self.pattern.shape[1] * self.pattern.groups
        if x.ndim != 4 or x.shape[1] != inputs or min(self.geometry.output(*x.shape[2:])) < 1:
            raise SparsityError(
                f"A convolution of {inputs} channels and a kernel of {self.pattern.shape[2:]} got an input of shape "
                f"{tuple(x.shape)}. Give it [n, {inputs}, h, w], with padding as high and wide as the kernel at least."
            )
        if x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu" and encoder(host().level):
            if self._products is None:
                self._products = ConvProducts(self.pattern, self.geometry)
            todo = _Todo(x, self, self._products)
            return todo.pending() if torch.is_grad_enabled() else todo.result()
        return dense_product(x, self.weight, self.bias, self.pattern, self.geometry)


class _Todo(Todo):
    """A convolution to be done, plus a tensor if there is one."""

    def __init__(self, x: Tensor, layer: SparseConv2d, products: ConvProducts) -> None:
        super().__init__(x)
        self.layer, self.products, self.sizes = layer, products, sizes_of(x, products.target)
        self.weight, self.bias, self.inputs = layer.weight, layer.bias, planes(x.detach(), self.sizes.pitch)
        start = layer.bias if layer.bias is not None else x.new_zeros(layer.pattern.shape[0])
        self.stream = products.stream(layer.weight.detach(), start.detach(), self.sizes)
        self.other: Tensor | None = None  # what is added
        self.edge: Tensor | None = None  # and what gets its gradient
        height, width = layer.geometry.output(*x.shape[2:])
        self.shape = len(x), layer.pattern.shape[0], height, width

    def result(self) -> Tensor:
        self.check()
        found: Tensor = _Convolution.apply(self.x, self.weight, self.bias, self.edge, self, False)
        return found

    def pending(self) -> Tensor:
        """As `result`, not yet computed."""
        found: Tensor = _Convolution.apply(self.x, self.weight, self.bias, self.edge, self, True)
        return found

    def added(self, other: Tensor) -> Tensor | None:
        value: Tensor = plain(other)
        alike = value.shape == self.shape and value.dtype == torch.float32 and value.device.type == "cpu"
        if self.other is not None or not alike or len(value) != self.sizes.pitch or not are_planes(value):
            return None
        more = copy(self)
        more.other = value.detach()
        more.edge = other.token if isinstance(other, Pending) and other.token is not None else value
        return more.pending()


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, edge: Tensor | None, todo: _Todo, later: bool
    ) -> Tensor:
        ctx.save_for_backward(todo.inputs, weight)
        ctx.layer, ctx.products, ctx.sizes, ctx.batch = todo.layer, todo.products, todo.sizes, len(x)
        if later:
            _, channels, _, width = todo.shape
            return Pending.of(todo, todo.shape, strides_of(channels, width, todo.sizes.pitch))
        other = None if todo.other is None else planes(todo.other, todo.sizes.pitch)
        return images(todo.products.forward(todo.inputs, todo.stream, todo.sizes, other), len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, weight), sizes = ctx.saved_tensors, ctx.sizes
        errors = planes(dy, sizes.pitch)
        if ctx.layer.tape is not None:
            ctx.layer.tape.append((images(inputs, ctx.batch), images(errors, ctx.batch)))
        dx = images(ctx.products.input_gradient(errors, weight, sizes), ctx.batch) if ctx.needs_input_grad[0] else None
        dw = ctx.products.weight_gradient(inputs, errors, sizes)
        db = errors.sum((0, 1, 3)) if ctx.needs_input_grad[2] else None
        return dx, dw, db, dy if ctx.needs_input_grad[3] else None, None, None


def dense_product(x: Tensor, values: Tensor, bias: Tensor | None, pattern: ConvPattern, geometry: Geometry) -> Tensor:
    """torch's dense convolution with the kernel that the values stand for: any dtype and device, as large as dense."""
    flat = torch.from_numpy(pattern.flat).to(values.device)
    kernel = values.new_zeros(math.prod(pattern.shape)).index_put((flat,), values).view(pattern.shape)
    return F.conv2d(x, kernel, bias, geometry.stride, geometry.padding, geometry.dilation, pattern.groups)


def _pair(number: int | Pair) -> Pair:
    return (number, number) if isinstance(number, int) else (number[0], number[1])
