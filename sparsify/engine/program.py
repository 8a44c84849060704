"""The engine's program: what a model is after the front has read it and before kernels are chosen.

A program is a straight list of operations over named values of known shape. It is built once for one set
of input shapes. Weights are part of the operations, in float32; those that are mostly zeros may be packed,
and zeros are what the kernels exploit. Whatever runs a program - the float64 interpreter that serves as
oracle, or generated machine code - must give the same results.

The whole grammar:

    Program   := inputs, values {name: Value}, constants {name: array}, operations, outputs
    Operation := Convolution | Linear | Pool | Elementwise | Chain | Reduce | Softmax | LayerNorm
               | MatMul | Gather | Rearrange | Recurrent | Foreign
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sparsify.engine.nonzeros import Weight, count

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """A named array that operations read or write.

    dtype is numpy's name. All floating point is "float32"; "int64", "int32" and "bool" are common, other
    integers occur next to Cast and Foreign. A size of -1 is known only at run time, as may be the number of
    axes where the shape is (-1,): outputs of a Foreign that no operation reads may have that.
    """

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Epilogue:
    """What is done to a linear operator's result on its way to memory: bias, residual add, clamp.

    y = clip(y + residual, low, high); ReLU is low = 0, ReLU6 low = 0 and high = 6.
    """

    residual: str | None = None  # a value of the output's shape
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, eq=False)
class Convolution:
    """y[n,o,...] = bias[o] + sum w[o,i,kh,kw] x[n,i,...]. One-dimensional ones have height 1."""

    input: str  # [n, c, h, w]
    output: str  # [n, o, oh, ow]
    weight: Weight  # [o, c / groups, kh, kw] float32
    bias: np.ndarray  # [o] float32
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    epilogue: Epilogue = field(default_factory=Epilogue)
    name: str = ""  # of the layer, as the model file calls it

    @cached_property
    def nonzeros(self) -> int:
        """Of the weight."""
        return count(self.weight)


@dataclass(frozen=True, eq=False)
class Linear:
    """y[..., o] = bias[o] + sum w[o, k] x[..., k]. Gemm and MatMul with a constant operand are this."""

    input: str  # [..., k]
    output: str  # [..., o]
    weight: Weight  # [o, k] float32
    bias: np.ndarray  # [o] float32
    epilogue: Epilogue = field(default_factory=Epilogue)
    name: str = ""

    @cached_property
    def nonzeros(self) -> int:
        """Of the weight."""
        return count(self.weight)


@dataclass(frozen=True)
class Pool:
    """Maximum or average over windows of the two last axes. Padding never counts in a maximum; `fill` is a
    number that may stand there, so that it does not."""

    kind: Literal["max", "average"]
    input: str  # [n, c, h, w]
    output: str  # [n, c, oh, ow]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    count_padding: bool = False  # average only: divide by the window's full size
    fill: float = -np.inf  # maximum only


@dataclass(frozen=True, eq=False)
class Elementwise:
    """One function of one to three operands, numpy broadcasting. Operands are value names or constants.

    The functions are the keys of `sparsify.engine.functions.FUNCTIONS`; "cast" converts to the output's
    dtype.
    """

    function: str
    inputs: tuple[str | np.ndarray, ...]
    output: str


@dataclass(frozen=True)
class Link:
    """One function of a Chain. Operands: the number of an input, or -1 - k for the result of link k."""

    function: str
    operands: tuple[int, ...]
    dtype: str  # of the result


@dataclass(frozen=True, eq=False)
class Chain:
    """Elementwise operations one after the other; the last one's result is the output, of whose shape all are."""

    links: tuple[Link, ...]
    inputs: tuple[str | np.ndarray, ...]
    output: str


@dataclass(frozen=True)
class Reduce:
    """Mean, sum, product, max or min over axes (none: of nothing). Global average pooling is mean, (2, 3)."""

    kind: Literal["mean", "sum", "prod", "max", "min"]
    input: str
    output: str
    axes: tuple[int, ...]
    keep: bool = True


@dataclass(frozen=True)
class Softmax:
    input: str
    output: str
    axis: int = -1


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """Normalisation over the axes from `axis` to the last, then scale and bias of that shape."""

    input: str
    output: str
    scale: np.ndarray
    bias: np.ndarray | None
    epsilon: float
    axis: int = -1


@dataclass(frozen=True)
class MatMul:
    """Batched product of two computed operands, as in attention; numpy's broadcasting of leading axes."""

    left: str  # [..., m, k]
    right: str  # [..., k, n]
    output: str  # [..., m, n]


@dataclass(frozen=True, eq=False)
class Gather:
    """np.take(data, indices, axis); data is a value name or a constant table (an embedding)."""

    data: str | np.ndarray
    indices: str | np.ndarray
    output: str
    axis: int = 0


@dataclass(frozen=True)
class Rearrange:
    """Operations that move elements and compute nothing: reshape, transpose, concat, slice, pad, expand.

    `arguments`: transpose {perm}; concat {axis}; slice {starts, stops, steps, one for each axis};
    pad {before, after, value}; reshape and expand read the output's shape. A view is some of them, but
    concat and pad, one after the other: {steps: (kind, arguments, shape of the result) of each}.
    """

    kind: Literal["reshape", "transpose", "concat", "slice", "pad", "expand", "view"]
    inputs: tuple[str, ...]
    output: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recurrent:
    """One direction of a GRU or LSTM layer in ONNX's gate order (GRU z, r, h; LSTM i, o, f, c)."""

    kind: Literal["gru", "lstm"]
    input: str  # [t, n, k]
    outputs: tuple[str | None, ...]  # sequence [t, n, hidden], last hidden [n, hidden], last cell
    weight: np.ndarray | None  # [gates * hidden, k]; None: the input holds weight x + bias[0] already
    recurrence: np.ndarray  # [gates * hidden, hidden]
    bias: np.ndarray  # [2, gates * hidden]: of the input and of the recurrence
    initial: tuple[str | None, ...] = (None, None)  # hidden, cell; None is zeros
    reverse: bool = False
    linear_before_reset: bool = False  # GRU only
    name: str = ""


@dataclass(frozen=True, eq=False)
class Foreign:
    """Nodes that the engine has no operation for: a small ONNX model that onnxruntime runs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: bytes
    operators: tuple[str, ...]  # for explain(): the operator types inside

    @property
    def name(self) -> str:
        """The operator types, as a layer's name in reports."""
        return ", ".join(self.operators)


Operation = (
    Convolution | Linear | Pool | Elementwise | Chain | Reduce | Softmax | LayerNorm
    | MatMul | Gather | Rearrange | Recurrent | Foreign
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Operations in the order in which they run; every value that one names has an entry in `values`.

    `outputs` are distinct and each is written by an operation. A name in `constants` may be read anywhere.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


READ_FIELDS = ("input", "inputs", "left", "right", "data", "indices", "initial")
WRITE_FIELDS = ("output", "outputs")


def _entries(operation: Operation, fields: tuple[str, ...]) -> list[Any]:
    """What the named fields of an operation hold, tuples opened."""
    found: list[Any] = []
    for name in fields:
        entry = getattr(operation, name, None)
        found.extend(entry if isinstance(entry, tuple) else (entry,))
    return found


def reads(operation: Operation) -> tuple[str, ...]:
    """Names of the values that an operation reads, its epilogue's residual last."""
    names = [entry for entry in _entries(operation, READ_FIELDS) if isinstance(entry, str) and entry]
    epilogue = getattr(operation, "epilogue", None)
    return (*names, epilogue.residual) if epilogue is not None and epilogue.residual else tuple(names)


def writes(operation: Operation) -> tuple[str, ...]:
    """Names of the values that an operation writes."""
    return tuple(entry for entry in _entries(operation, WRITE_FIELDS) if entry)


def renamed(operation: Operation, names: Mapping[str, str]) -> Operation:
    """The same operation with values renamed wherever it reads or writes them."""

    def new(entry: Any) -> Any:
        if isinstance(entry, tuple):
            return tuple(new(part) for part in entry)
        return names.get(entry, entry) if isinstance(entry, str) else entry

    fields = [name for name in READ_FIELDS + WRITE_FIELDS if hasattr(operation, name)]
    changes: dict[str, Any] = {name: new(getattr(operation, name)) for name in fields}
    epilogue = getattr(operation, "epilogue", None)
    if epilogue is not None:
        changes["epilogue"] = replace(epilogue, residual=new(epilogue.residual))
    return replace(operation, **changes)
