"""Batch normalisation for activations that lie as sparse convolutions leave them, one pass with the ReLU behind it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.engine.library import Library, library
from sparsify.engine.target import host
from sparsify.nn import kernels, team
from sparsify.nn.conv_products import images
from sparsify.nn.memory import ACTIVATIONS
from sparsify.nn.pending import Pending, Todo, plain

Numbers = np.ndarray[Any, np.dtype[np.float64]]
_CHUNKS = 16  # of positions, each with sums of its own


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
        if self.weight is None or self.bias is None or self.running_mean is None or not _fits(x, self.weight):
            return super().forward(x)
        if self.training:
            mean, variance = self._statistics(x.detach())
        elif torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return super().forward(x)  # where statistics are constants
        else:
            assert self.running_var is not None
            mean, variance = (_wide(statistic) for statistic in (self.running_mean, self.running_var))
        return _Todo(given, x, self.weight, self.bias, mean, 1 / np.sqrt(variance + self.eps)).pending()

    def _statistics(self, x: Tensor) -> tuple[Numbers, Numbers]:
        """Mean and variance of each channel, [c], after the running ones have moved towards them."""
        mean, variance = statistics(x.permute(2, 3, 1, 0))
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        count = x.numel() // x.shape[1]
        for running, found in ((self.running_mean, mean), (self.running_var, variance * count / max(1, count - 1))):
            running.lerp_(_narrow(found), momentum)
        return mean, variance


class _Todo(Todo):
    """A normalisation to be done."""

    def __init__(self, given: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Numbers, slope: Numbers) -> None:
        """x: [n, c, h, w] in planes, `given` as it was given; all others [c]. y = (x - mean) slope weight + bias."""
        super().__init__(x)
        self._given, self._weight, self._bias = given, weight, bias
        self.mean, self.slope, self.scale = mean, slope, _wide(weight) * slope
        # y = line[0] x + line[1]; what happens to the weight until then does not matter
        self.line = np.stack([self.scale, _wide(bias) - mean * self.scale]).astype(np.float32)

    def result(self) -> Tensor:
        return self._result(-np.inf)

    def rectified(self) -> Tensor:
        return self._result(0.0)

    def pending(self) -> Tensor:
        """As `result`, not yet computed."""
        found: Tensor = _Normalise.apply(self.x, self._weight, self._bias, self, -np.inf, True)
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
        ctx.line, ctx.mean, ctx.slope, ctx.scale, ctx.floor = todo.line, todo.mean, todo.slope, todo.scale, floor
        if later:
            return Pending.of(todo, x.shape, x.stride())
        y = _empty_like(x)
        _run("apply", x, floor, [x, ctx.line, y])
        return y, torch.empty_strided(x.shape, (0, 0, 0, 0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, through: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return through, *[None] * 5
        (x,), line, mean, slope, scale = ctx.saved_tensors, ctx.line, ctx.mean, ctx.slope, ctx.scale
        channels = x.shape[1]
        dy = _in_order(dy, x)
        sums = np.zeros((_CHUNKS, 2, channels, host().width), np.float32)
        _run("back_sums", x, ctx.floor, [x, dy, np.concatenate([line, mean[None]]).astype(np.float32), sums])
        total, product = sums.sum((0, 3), np.float64)
        count = x.numel() // channels
        part = -scale * slope * slope * product / count
        constant = -scale * total / count - part * mean
        lines, dx = np.concatenate([line, [scale, part, constant]]).astype(np.float32), _empty_like(x)
        if through is None:
            _run("back_apply", x, ctx.floor, [x, dy, lines, dx])
        else:
            _run("back_apply_add", x, ctx.floor, [x, dy, lines, dx, _in_order(through, x)])
        return dx, _narrow(product * slope), _narrow(total), *[None] * 3


def _in_order(dy: Tensor, x: Tensor) -> Tensor:
    """dy in x's order of memory."""
    return dy if dy.stride() == x.stride() else _empty_like(x).copy_(dy)


def statistics(planes: Tensor) -> tuple[Numbers, Numbers]:
    """Mean and variance of each channel of planes [h, w, c, pitch]: [c] each."""
    channels = planes.shape[2]
    near = planes[0, 0, :, 0].contiguous().numpy()  # sums of small numbers lose less
    sums = np.zeros((_CHUNKS, 2, channels, host().width), np.float32)
    _run("sums", planes.permute(3, 2, 0, 1), 0.0, [planes, near, sums])
    total, square = sums.sum((0, 3), np.float64) / (planes.numel() // channels)
    return near + total, np.maximum(square - total * total, 0)


def _wide(tensor: Tensor) -> Numbers:
    return tensor.detach().numpy().astype(np.float64)


def _narrow(numbers: Numbers) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32))


def _empty_like(x: Tensor) -> Tensor:
    """[n, c, h, w] whose memory is planes."""
    n, channels, height, width = x.shape
    return images(ACTIVATIONS.empty(height, width, channels, n), n)


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the native functions can read it: whole vectors of images in the lanes."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and type(x) is Tensor
    return (
        plain and x.ndim == 4 and x.numel() > 0 and len(x) % host().width == 0 and x.permute(2, 3, 1, 0).is_contiguous()
    )


def _run(name: str, x: Tensor, floor: float, arrays: list[Tensor | np.ndarray]) -> None:
    """A native function on x: [n, c, h, w]."""
    n, channels, height, width = x.shape
    found: Library = library(host(), kernels)
    positions = height * width
    numbers = [positions, -(-positions // _CHUNKS), channels, n // host().width, 0]
    constants = np.array(numbers, np.int64)
    constants[4:].view(np.float32)[0] = floor
    buffers = np.array([a.data_ptr() if isinstance(a, Tensor) else a.ctypes.data for a in arrays], np.int64)
    team.call(found, f"sparsify_norm_{name}", _CHUNKS, buffers, constants)
