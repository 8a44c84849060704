"""Batch normalisation for activations that lie as sparse convolutions leave them, one pass with the ReLU behind it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.engine.library import Library, library
from sparsify.engine.target import host
from sparsify.nn import kernels, team
from sparsify.nn.memory import ACTIVATIONS

Numbers = np.ndarray[Any, np.dtype[np.float64]]
_CHUNKS = 16  # of positions, each with sums of its own
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_LOOKS = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")} | {Tensor.size, Tensor.dim}


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
        if self.weight is None or self.bias is None or self.running_mean is None or not _fits(x, self.weight):
            return super().forward(x)
        if self.training:
            mean, variance = self._statistics(x.detach())
        elif torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return super().forward(x)  # where statistics are constants
        else:
            assert self.running_var is not None
            mean, variance = (_wide(statistic) for statistic in (self.running_mean, self.running_var))
        return _Todo(x, self.weight, self.bias, mean, 1 / np.sqrt(variance + self.eps)).pending()

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


class Pending(Tensor):
    """The output of a normalisation, computed when it is known whether a ReLU takes it: then in one pass with that.

    Every other function of torch gets the plain tensor in its place. The graph of derivatives goes through it all the
    same, for what autograd is told without a function of torch.
    """

    todo: _Todo
    done: Tensor | None = None  # what an operation in place made of it

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first, kwargs = (args[0] if args else None), kwargs or {}
        if isinstance(first, Pending) and function in _LOOKS:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if isinstance(first, Pending) and first.done is None and function in _RELU:
            result = first.todo.result(rectified=True)
            if kwargs.get("inplace") or function in (F.relu_, torch.relu_, Tensor.relu_) or args[1:] == (True,):
                first.done = result
            return result
        return function(*map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Only operations that are asked for beneath torch's functions come here; they see no derivatives."""
        with torch.no_grad():
            return function(*map(_plain, args), **{key: _plain(value) for key, value in (kwargs or {}).items()})


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, Pending):
        if value.done is None:
            value.done = value.todo.result(rectified=False)
        return value.done
    return value


class _Todo:
    """A normalisation to be done."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Numbers, slope: Numbers) -> None:
        """x: [n, c, h, w] whose memory is planes; all others: [c], and y = (x - mean) slope weight + bias."""
        self.x, self.weight, self.bias, self.mean, self.slope = x, weight, bias, mean, slope

    def result(self, rectified: bool) -> Tensor:
        found: Tensor = _Normalise.apply(self.x, self.weight, self.bias, self, 0.0 if rectified else -np.inf, False)
        return found

    def pending(self) -> Tensor:
        """As `result`, not yet computed."""
        found: Tensor = _Normalise.apply(self.x, self.weight, self.bias, self, -np.inf, True)
        return found


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, todo: _Todo, floor: float, later: bool) -> Tensor:
        scale = _wide(weight) * todo.slope
        line = np.stack([scale, _wide(bias) - todo.mean * scale]).astype(np.float32)  # y = line[0] x + line[1]
        ctx.save_for_backward(x, weight)
        ctx.line = line
        ctx.todo, ctx.floor = todo, floor
        if later:
            made: Any = Tensor._make_wrapper_subclass(Pending, x.shape, strides=x.stride(), dtype=x.dtype)
            made.todo = todo
            return made
        y = _empty_like(x)
        _run("apply", x, floor, [x, line, y])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), line = ctx.saved_tensors, ctx.line
        mean, slope, channels = ctx.todo.mean, ctx.todo.slope, x.shape[1]
        dy = _empty_like(x).copy_(dy) if dy.stride() != x.stride() else dy
        sums = np.zeros((_CHUNKS, 2, channels, host().width), np.float32)
        _run("back_sums", x, ctx.floor, [x, dy, np.concatenate([line, mean[None]]).astype(np.float32), sums])
        total, product = sums.sum((0, 3), np.float64)
        scale, count = _wide(weight) * slope, x.numel() // channels
        part = -scale * slope * slope * product / count
        constant = -scale * total / count - part * mean
        dx = _empty_like(x)
        _run(
            "back_apply", x, ctx.floor, [x, dy, np.concatenate([line, [scale, part, constant]]).astype(np.float32), dx]
        )
        return dx, _narrow(product * slope), _narrow(total), None, None, None


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
    return ACTIVATIONS.empty(height, width, channels, n).permute(3, 2, 0, 1)


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
