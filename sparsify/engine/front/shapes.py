"""Shapes and dtypes of what each operation writes, from those of what it reads. Says no to what cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsify.engine.functions import FUNCTIONS
from sparsify.engine.program import (
    Convolution,
    Elementwise,
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

Values = Mapping[str, Value]


def infer(operation: Operation, values: Values) -> list[Value]:
    """The values that an operation writes, in the order of `writes(operation)`.

    Raises ValueError where operands do not fit each other. Not for Foreign, "cast", "reshape" and "expand":
    what they write is declared by whoever makes them.
    """
    return INFER[type(operation)](operation, values)


def broadcast(*shapes: Shape) -> Shape:
    """numpy's broadcasting. Raises ValueError where shapes do not fit."""
    return np.broadcast_shapes(*shapes)


def window_size(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Number of places at which a window fits along one axis. `padding` is the sum of both ends."""
    room = size + padding - dilation * (kernel - 1) - 1
    if room < 0:
        raise ValueError(f"a window of {dilation * (kernel - 1) + 1} does not fit into {size + padding} elements")
    return room // stride + 1


def _windows(x: Shape, kernel: Sequence[int], op: Convolution | Pool) -> Shape:
    if min(*op.stride, *op.dilation, *kernel) < 1 or min(op.padding) < 0:
        raise ValueError(f"kernel {tuple(kernel)}, stride {op.stride} and dilation {op.dilation} must be positive")
    top, left, bottom, right = op.padding
    sums = (top + bottom, left + right)
    places = zip(x[2:], kernel, op.stride, op.dilation, sums, strict=True)
    return tuple(window_size(*place) for place in places)


def _convolution(op: Convolution, values: Values) -> list[Value]:
    x = values[op.input].shape
    out_channels, group_channels, *kernel = op.weight.shape
    if len(x) != 4 or op.groups < 1 or group_channels * op.groups != x[1] or out_channels % op.groups:
        raise ValueError(f"weight {op.weight.shape} in {op.groups} groups does not fit the input {x}")
    return [Value(op.output, (x[0], out_channels, *_windows(x, kernel, op)))]


def _linear(op: Linear, values: Values) -> list[Value]:
    x = values[op.input].shape
    if not x or x[-1] != op.weight.shape[1]:
        raise ValueError(f"weight {op.weight.shape} does not fit the input {x}")
    return [Value(op.output, (*x[:-1], op.weight.shape[0]))]


def _pool(op: Pool, values: Values) -> list[Value]:
    x = values[op.input]
    if len(x.shape) != 4:
        raise ValueError(f"pooling needs [n, c, h, w], not {x.shape}")
    return [Value(op.output, (*x.shape[:2], *_windows(x.shape, op.kernel, op)), x.dtype)]


def operand_value(entry: str | np.ndarray[Any, Any], values: Values) -> Value:
    """The Value of an operand that is a name or a constant."""
    return values[entry] if isinstance(entry, str) else Value("", entry.shape, str(entry.dtype))


def _elementwise(op: Elementwise, values: Values) -> list[Value]:
    operands = [operand_value(entry, values) for entry in op.inputs]
    function = FUNCTIONS[op.function]
    if len(operands) != function.arity:
        raise ValueError(f"{op.function} takes {function.arity} operands, not {len(operands)}")
    shape = broadcast(*(o.shape for o in operands))
    dtype = operands[1 if op.function == "where" else 0].dtype
    return [Value(op.output, shape, "bool" if function.is_truth else dtype)]


def normal_axis(axis: int, rank: int) -> int:
    """The axis counted from the front. Raises ValueError where there is no such axis."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} in an array of {rank} axes")
    return axis % rank


def _reduce(op: Reduce, values: Values) -> list[Value]:
    x = values[op.input]
    axes = {normal_axis(axis, len(x.shape)) for axis in op.axes}
    kept = enumerate(x.shape)
    shape = tuple(1 if i in axes else size for i, size in kept if op.keep or i not in axes)
    return [Value(op.output, shape, x.dtype)]


def _softmax(op: Softmax, values: Values) -> list[Value]:
    x = values[op.input]
    normal_axis(op.axis, len(x.shape))
    return [Value(op.output, x.shape)]


def _layer_norm(op: LayerNorm, values: Values) -> list[Value]:
    x = values[op.input].shape
    tail = x[normal_axis(op.axis, len(x)) :]
    if op.scale.shape != tail or (op.bias is not None and op.bias.shape != tail):
        raise ValueError(f"scale {op.scale.shape} does not fit the normalised axes {tail}")
    return [Value(op.output, x)]


def _matmul(op: MatMul, values: Values) -> list[Value]:
    left, right = values[op.left], values[op.right]
    a, b = left.shape, right.shape
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        raise ValueError(f"matrices {a} and {b} do not fit each other")
    return [Value(op.output, (*broadcast(a[:-2], b[:-2]), a[-2], b[-1]), left.dtype)]


def _gather(op: Gather, values: Values) -> list[Value]:
    data, indices = operand_value(op.data, values), operand_value(op.indices, values)
    axis = normal_axis(op.axis, len(data.shape))
    return [Value(op.output, data.shape[:axis] + indices.shape + data.shape[axis + 1 :], data.dtype)]


def slice_size(start: int, stop: int, step: int) -> int:
    """Number of elements of a slice whose bounds are already inside the axis."""
    return max(0, math.ceil((stop - start) / step))


def _concat(inputs: Sequence[Value], axis: int) -> Shape:
    first = inputs[0].shape
    axis = normal_axis(axis, len(first))
    rests = {v.shape[:axis] + v.shape[axis + 1 :] for v in inputs if len(v.shape) == len(first)}
    if len(rests) != 1 or any(len(v.shape) != len(first) for v in inputs):
        raise ValueError(f"cannot join {[v.shape for v in inputs]} along axis {axis}")
    return (*first[:axis], sum(v.shape[axis] for v in inputs), *first[axis + 1 :])


def _rearrange(op: Rearrange, values: Values) -> list[Value]:
    inputs, given = [values[name] for name in op.inputs], op.arguments
    x = inputs[0].shape
    match op.kind:
        case "transpose":
            if sorted(given["perm"]) != list(range(len(x))):
                raise ValueError(f"{given['perm']} is no order of {len(x)} axes")
            shape = tuple(x[axis] for axis in given["perm"])
        case "concat":
            shape = _concat(inputs, given["axis"])
        case "slice":
            spans = zip(given["starts"], given["stops"], given["steps"], strict=True)
            shape = tuple(slice_size(*span) for span in spans)
        case "pad":
            shape = tuple(b + n + a for b, n, a in zip(given["before"], x, given["after"], strict=True))
        case kind:
            raise ValueError(f"the shape of {kind} must be declared")
    return [Value(op.output, shape, inputs[0].dtype)]


def _recurrent(op: Recurrent, values: Values) -> list[Value]:
    x = values[op.input].shape
    gates = {"gru": 3, "lstm": 4}[op.kind]
    rows, hidden = op.recurrence.shape
    entering = (rows, x[-1]) if op.weight is None else op.weight.shape
    if len(x) != 3 or rows != gates * hidden or entering != (rows, x[2]) or op.bias.shape != (2, rows):
        raise ValueError(f"weights {entering} and {op.recurrence.shape} do not fit the input {x}")
    last = (x[1], hidden)
    if any(name is not None and values[name].shape != last for name in op.initial):
        raise ValueError(f"the initial state must have the shape {last}")
    shapes = ((x[0], *last), last, last)
    return [Value(name, shape) for name, shape in zip(op.outputs, shapes, strict=False) if name]


INFER: dict[type, Callable[[Any, Values], list[Value]]] = {
    Convolution: _convolution,
    Linear: _linear,
    Pool: _pool,
    Elementwise: _elementwise,
    Reduce: _reduce,
    Softmax: _softmax,
    LayerNorm: _layer_norm,
    MatMul: _matmul,
    Gather: _gather,
    Rearrange: _rearrange,
    Recurrent: _recurrent,
}
