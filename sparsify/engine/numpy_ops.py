"""Every operation of a Program in plain numpy: in float64 the oracle, in float32 what has no kernel yet.

Each function follows its operation's definition in `program.py` literally, loops included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sparsify.engine.foreign import run_foreign
from sparsify.engine.functions import FUNCTIONS, sigmoid
from sparsify.engine.program import (
    Chain,
    Convolution,
    Elementwise,
    Epilogue,
    Foreign,
    Gather,
    LayerNorm,
    Linear,
    MatMul,
    Operation,
    Pool,
    Rearrange,
    Recurrent,
    Reduce,
    Shape,
    Softmax,
    Value,
)
from sparsify.errors import EngineError

Array = np.ndarray[Any, Any]


def compute(operation: Operation, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    """Run one operation.

    `operands` are the arrays of `reads(operation)`, in order; `results` the values of `writes(operation)`.
    Arithmetic is in the operands' precision: the operation's own constants are converted to it.
    Raises EngineError for an index out of range and for an integer division by zero.
    """
    try:
        with np.errstate(all="ignore"):  # infinities and NaN are results like any other
            return COMPUTE[type(operation)](operation, operands, results)
    except (IndexError, ZeroDivisionError) as error:
        raise EngineError(
            f"The {type(operation).__name__} that makes '{results[0].name}' met an index out of range or an "
            f"integer division by zero: {error}. Check the model's inputs, token numbers above all."
        ) from error


def _finish(y: Array, epilogue: Epilogue, operands: Sequence[Array]) -> tuple[Array, ...]:
    """Add the residual (the last operand) and clamp."""
    if epilogue.residual is not None:
        y = y + operands[-1]
    return (np.clip(y, epilogue.low, epilogue.high).astype(y.dtype, copy=False),)


def _taps(
    x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[tuple[int, int], Array]]:
    """For each tap of a window over the padded x, the elements [n, c, oh, ow] that it meets."""
    for tap in np.ndindex(*kernel):
        spans = [
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilation, size, stride, strict=True)
        ]
        yield (tap[0], tap[1]), x[:, :, spans[0], spans[1]]


def _padded(x: Array, padding: tuple[int, int, int, int], fill: float = 0) -> Array:
    top, left, bottom, right = padding
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)


def convolution(op: Convolution, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    """One matrix product for each tap of the kernel."""
    x = operands[0]
    out_channels, group_channels, *kernel = op.weight.shape
    n, _, height, width = results[0].shape
    weight = np.asarray(op.weight, x.dtype).reshape(op.groups, -1, group_channels, *kernel)
    y = np.zeros((n, op.groups, out_channels // op.groups, height * width), x.dtype)
    taps = _taps(_padded(x, op.padding), kernel, op.stride, op.dilation, (height, width))
    for (i, j), part in taps:
        columns = part.reshape(n, op.groups, group_channels, height * width)
        y += np.matmul(weight[..., i, j], columns)
    y = y.reshape(n, out_channels, height, width) + op.bias.astype(x.dtype)[:, None, None]
    return _finish(y, op.epilogue, operands)


def linear(op: Linear, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x = operands[0]
    y = np.matmul(x, np.asarray(op.weight, x.dtype).T) + op.bias.astype(x.dtype)
    return _finish(y, op.epilogue, operands)


def pool(op: Pool, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x = operands[0]
    size = results[0].shape[2:]
    window = (op.kernel, op.stride, op.dilation, size)
    if op.kind == "max":
        parts = [part for _, part in _taps(_padded(x, op.padding, lowest(x.dtype)), *window)]
        return (np.max(parts, axis=0),)
    total = sum(part for _, part in _taps(_padded(x, op.padding), *window))
    inside = _padded(np.ones_like(x), op.padding, fill=float(op.count_padding))
    count = sum(part for _, part in _taps(inside, *window))
    return (np.asarray(total / count, x.dtype),)


def elementwise(op: Elementwise, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    return (_applied(op.function, _arrays(op, operands), results[0].dtype),)


def chain(op: Chain, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    inputs, made = _arrays(op, operands), list[Array]()
    for link in op.links:
        given = [inputs[i] if i >= 0 else made[-1 - i] for i in link.operands]
        made.append(_applied(link.function, given, link.dtype))
    return (made[-1],)


def _arrays(op: Elementwise | Chain, operands: Sequence[Array]) -> list[Array]:
    """All operands, constants included, those of floating point in one precision."""
    names = iter(operands)
    arrays = [next(names) if isinstance(entry, str) else entry for entry in op.inputs]
    precision = next((a.dtype for a in operands if a.dtype.kind == "f"), None)
    if precision is None:
        return arrays
    return [a.astype(precision) if a.dtype.kind == "f" else a for a in arrays]


def _applied(function: str, arrays: Sequence[Array], dtype: str) -> Array:
    y = np.asarray(FUNCTIONS[function].compute(*arrays))
    wanted = np.dtype(dtype)
    if wanted.kind == "f" and y.dtype.kind == "f":
        return y  # float64 stays what it is
    return y.astype(wanted)


def reduce(op: Reduce, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x = operands[0]
    start = {"initial": lowest(x.dtype, op.kind)} if op.kind in ("max", "min") else {}
    y = getattr(np, op.kind)(x, axis=op.axes, keepdims=op.keep, **start)
    return (np.asarray(y, x.dtype),)


def lowest(dtype: np.dtype[Any], kind: str = "max") -> Any:
    """What a maximum starts from, or a minimum: the result where there is nothing to compare."""
    if dtype.kind in "fb":
        return -np.inf if kind == "max" and dtype.kind == "f" else np.inf if dtype.kind == "f" else kind == "min"
    return np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max


def softmax(op: Softmax, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x = operands[0]
    power = np.exp(x - x.max(axis=op.axis, keepdims=True, initial=-np.inf))
    return (power / power.sum(axis=op.axis, keepdims=True),)


def layer_norm(op: LayerNorm, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x = operands[0]
    axes = tuple(range(op.axis % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(centred**2, axis=axes, keepdims=True)
    y = centred / np.sqrt(variance + x.dtype.type(op.epsilon)) * op.scale.astype(x.dtype)
    return (y if op.bias is None else y + op.bias.astype(x.dtype),)


def matmul(op: MatMul, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    return (np.matmul(operands[0], operands[1]),)


def gather(op: Gather, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    """Indices count from the end where negative; numpy raises IndexError beyond the table."""
    names = iter(operands)
    data = next(names) if isinstance(op.data, str) else op.data
    indices = next(names) if isinstance(op.indices, str) else op.indices
    return (np.take(data, indices, axis=op.axis),)


def rearrange(op: Rearrange, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    if op.kind != "view":
        return (_rearranged(op.kind, operands, op.arguments, results[0].shape),)
    y = operands[0]
    for kind, given, shape in op.arguments["steps"]:
        y = _rearranged(kind, [y], given, shape)
    return (y,)


def _rearranged(kind: str, operands: Sequence[Array], given: Mapping[str, Any], shape: Shape) -> Array:
    x = operands[0]
    match kind:
        case "reshape":
            y = x.reshape(shape)
        case "transpose":
            y = x.transpose(given["perm"])
        case "concat":
            y = np.concatenate(operands, axis=given["axis"])
        case "slice":
            spans = zip(given["starts"], given["stops"], given["steps"], strict=True)
            # a backward slice that reaches index 0 stops at -1, which numpy writes as None
            y = x[tuple(slice(a, None if b < 0 else b, s) for a, b, s in spans)]
        case "pad":
            widths = list(zip(given["before"], given["after"], strict=True))
            y = np.pad(x, widths, constant_values=given["value"])
        case "expand":
            y = np.broadcast_to(x, shape)
    return np.ascontiguousarray(y).reshape(shape)


def _gates(pre: Array, hidden: int) -> list[Array]:
    return [pre[..., i : i + hidden] for i in range(0, pre.shape[-1], hidden)]


def _gru_step(op: Recurrent, x: Array, h: Array, weights: Sequence[Array]) -> Array:
    """x [n, 3 hidden] is the input's share of the gates, in ONNX's order z, r, h; h is [n, hidden]."""
    u, ub = weights
    xz, xr, xh = _gates(x, h.shape[-1])
    uz, ur, uh = np.split(u, 3)
    bz, br, bh = np.split(ub, 3)
    z = sigmoid(xz + h @ uz.T + bz)
    r = sigmoid(xr + h @ ur.T + br)
    recurrent = r * (h @ uh.T + bh) if op.linear_before_reset else (r * h) @ uh.T + bh
    return (1 - z) * np.tanh(xh + recurrent) + z * h


def _lstm_step(x: Array, h: Array, c: Array, weights: Sequence[Array]) -> tuple[Array, Array]:
    """x [n, 4 hidden] is the input's share of the gates, in ONNX's order i, o, f, c."""
    u, ub = weights
    i, o, f, candidate = _gates(x + h @ u.T + ub, h.shape[-1])
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
    return sigmoid(o) * np.tanh(c), c


def recurrent(op: Recurrent, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    x, given = operands[0], iter(operands[1:])
    steps, n, _ = x.shape
    hidden = op.recurrence.shape[1]
    h, c = (np.zeros((n, hidden), x.dtype) if name is None else next(given) for name in op.initial)
    if op.weight is not None:
        x = x @ op.weight.astype(x.dtype).T + op.bias[0].astype(x.dtype)
    weights = [a.astype(x.dtype) for a in (op.recurrence, op.bias[1])]
    sequence = np.zeros((steps, n, hidden), x.dtype)
    for t in reversed(range(steps)) if op.reverse else range(steps):
        if op.kind == "gru":
            h = _gru_step(op, x[t], h, weights)
        else:
            h, c = _lstm_step(x[t], h, c, weights)
        sequence[t] = h
    found = zip(op.outputs, (sequence, h, c), strict=False)
    return tuple(array for name, array in found if name)


def foreign(op: Foreign, operands: Sequence[Array], results: Sequence[Value]) -> tuple[Array, ...]:
    return tuple(run_foreign(op.model, operands))


COMPUTE: dict[type, Callable[[Any, Sequence[Array], Sequence[Value]], tuple[Array, ...]]] = {
    Convolution: convolution,
    Linear: linear,
    Pool: pool,
    Elementwise: elementwise,
    Chain: chain,
    Reduce: reduce,
    Softmax: softmax,
    LayerNorm: layer_norm,
    MatMul: matmul,
    Gather: gather,
    Rearrange: rearrange,
    Recurrent: recurrent,
    Foreign: foreign,
}
