"""Batch normalisation for activations that lie as sparse convolutions leave them, one pass with the ReLU behind it."""

from __future__ import annotations

import ctypes
import struct
from math import inf
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.engine.library import library
from sparsify.engine.target import host
from sparsify.nn import kernels, team
from sparsify.nn.conv_products import are_planes, images
from sparsify.nn.kernels.norm_numbers import CHUNKS
from sparsify.nn.memory import ACTIVATIONS
from sparsify.nn.pending import Pending, Todo, plain

_LAYOUT = struct.Struct("qqqqf4xdd")


class PlanesBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that is fast on planes [h, w, c, batch], the order of what SparseConv2d writes.

    torch's own copies such activations. Parameters, buffers and their names are the same, and so are results, up to
    float32's precision. A ReLU that takes the output is done in the same pass (`Pending`). What else there is - other
    dtypes, devices and orders, layers without parameters or statistics - torch does.
    """

    @classmethod
    def like(cls, module: nn.BatchNorm2d) -> Self:
        """A layer with the parameters and buffers of another."""
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        return made

    def dense_layer(self) -> nn.BatchNorm2d:
        """The torch layer with these parameters and buffers."""
        made = nn.BatchNorm2d.__new__(nn.BatchNorm2d)
        made.__dict__.update(self.__dict__)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to the same shape."""
        given, x = x, plain(x)
        if (
            self.weight is None
            or self.bias is None
            or self.running_mean is None
            or not _fits(x, self.weight, self.running_mean)
        ):
            return super().forward(x)
        assert self.running_var is not None and self.num_batches_tracked is not None
        line, exact = x.new_empty(3, x.shape[1]), x.new_empty(3, x.shape[1], dtype=torch.float64)
        if self.training:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            constants, sums = _constants(x, 0.0, self.eps, momentum), _sums(x)
            _run("sums", CHUNKS, [x, sums], constants)
            own = [self.weight, self.bias, self.running_mean, self.running_var]
            _run("forward", 1, [x, sums, *own, line, exact], constants)
        elif torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return super().forward(x)  # where statistics are constants
        else:
            mean, slope = self.running_mean.double(), (self.running_var.double() + self.eps).rsqrt()
            scale = self.weight.double() * slope
            torch.stack([mean, slope, scale], out=exact)
            line.copy_(torch.stack([scale, self.bias - mean * scale, mean]))
        return _Todo(given, x, self.weight, self.bias, line, exact).pending()


class _Todo(Todo):
    """A normalisation to be done."""

    def __init__(self, given: Tensor, x: Tensor, weight: Tensor, bias: Tensor, line: Tensor, exact: Tensor) -> None:
        """x: [n, c, h, w] in planes, `given` as it was given; line and exact: as in `kernels/norm_numbers.py`.

        What happens to weight and bias until it is done does not matter.
        """
        super().__init__(x)
        self._given, self._weight, self._bias, self.line, self.exact = given, weight, bias, line, exact

    def result(self) -> Tensor:
        return self._result(-inf)

    def rectified(self) -> Tensor:
        return self._result(0.0)

    def pending(self) -> Tensor:
        """As `result`, not yet computed."""
        found: Tensor = _Normalise.apply(self.x, self._weight, self._bias, self, -inf, True)
        return found

    def _result(self, floor: float) -> Tensor:
        self.check()
        found: Tensor
        found, token = _Normalise.apply(self.x, self._weight, self._bias, self, floor, False)
        if isinstance(self._given, Pending):
            self._given.token = token
        return found


class _Normalise(torch.autograd.Function):
    """Its second output stands for x in sums behind it: what comes back to it is added to x's gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, todo: _Todo, floor: float, later: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        ctx.line, ctx.exact, ctx.floor = todo.line, todo.exact, floor
        if later:
            return Pending.of(todo, x.shape, x.stride())
        y = _empty_like(x)
        _run("apply", CHUNKS, [x, ctx.line, y], _constants(x, floor))
        return y, torch.empty_strided(x.shape, (0, 0, 0, 0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, through: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return through, *[None] * 5
        (x,), line = ctx.saved_tensors, ctx.line
        channels, constants = x.shape[1], _constants(x, ctx.floor)
        dy, sums = _in_order(dy, x), _sums(x)
        _run("back_sums", CHUNKS, [x, dy, line, sums], constants)
        lines, dweight, dbias = x.new_empty(5, channels), x.new_empty(channels), x.new_empty(channels)
        _run("backward", 1, [sums, line, ctx.exact, lines, dweight, dbias], constants)
        dx = _empty_like(x)
        if through is None:
            _run("back_apply", CHUNKS, [x, dy, lines, dx], constants)
        else:
            _run("back_apply_add", CHUNKS, [x, dy, lines, dx, _in_order(through, x)], constants)
        return dx, dweight, dbias, *[None] * 3


def _in_order(dy: Tensor, x: Tensor) -> Tensor:
    """dy in x's order of memory."""
    return dy if dy.stride() == x.stride() else _empty_like(x).copy_(dy)


def _empty_like(x: Tensor) -> Tensor:
    """[n, c, h, w] whose memory is planes."""
    n, channels, height, width = x.shape
    return images(ACTIVATIONS.empty(height, width, channels, n), n)


def _fits(x: Tensor, weight: Tensor, mean: Tensor) -> bool:
    """Whether the native functions can read it: whole vectors of images in the lanes."""
    plain = x.dtype == weight.dtype == mean.dtype == torch.float32 and x.device.type == "cpu" and type(x) is Tensor
    return plain and x.ndim == 4 and x.numel() > 0 and len(x) % host().width == 0 and are_planes(x)


def _sums(x: Tensor) -> Tensor:
    """Room for two sums of each channel, [chunks, 2, channels, lanes]."""
    return ACTIVATIONS.empty(CHUNKS, 2, x.shape[1], host().width)


def _constants(x: Tensor, floor: float, eps: float = 0.0, momentum: float = 0.0) -> ctypes.Array[ctypes.c_char]:
    """What the functions of `kernels/norm.py` and `norm_numbers.py` know of x: [n, c, h, w]."""
    n, channels, height, width = x.shape
    positions = height * width
    numbers = positions, -(-positions // CHUNKS), channels, n // host().width, floor, eps, momentum
    return ctypes.create_string_buffer(_LAYOUT.pack(*numbers))


def _run(name: str, pieces: int, tensors: list[Tensor], constants: ctypes.Array[ctypes.c_char]) -> None:
    buffers = [tensor.data_ptr() for tensor in tensors]
    team.call(library(host(), kernels), f"sparsify_norm_{name}", pieces, buffers, ctypes.addressof(constants))
