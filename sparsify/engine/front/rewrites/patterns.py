"""Operations that exporters write out in small steps, found again as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Elementwise, LayerNorm, Reduce

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Step:
    """An Elementwise operation of one computed operand and one constant number."""

    number: int  # of the operation
    source: str
    constant: float
    output: str


def _step(rewrite: Rewrite, i: int | None, functions: tuple[str, ...]) -> Step | None:
    """Operation i as a Step, a division as a product; None where it is something else."""
    op = rewrite.operations[i] if i is not None else None
    if i is None or not isinstance(op, Elementwise) or op.function not in functions or len(op.inputs) != 2:
        return None
    first, second = op.inputs
    source, constant = (first, second) if isinstance(first, str) else (second, first)
    if not isinstance(source, str) or isinstance(constant, str) or constant.size != 1:
        return None
    value = float(constant.reshape(-1)[0])
    if op.function == "div":
        if not isinstance(first, str) or value == 0:
            return None
        value = 1 / value
    return Step(i, source, value, op.output)


def _near(x: float, y: float) -> bool:
    return math.isclose(x, y, rel_tol=1e-4)


def find_gelu(rewrite: Rewrite) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, its factors in any order."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, Elementwise) or op.function != "erf" or not isinstance(op.inputs[0], str):
            continue
        scaled = _step(rewrite, rewrite.maker(op.inputs[0]), ("mul", "div"))
        if scaled is None or not _near(scaled.constant, math.sqrt(0.5)):
            continue
        plus = _step(rewrite, rewrite.sole_reader(i), ("add",))
        if plus is None or plus.constant != 1:
            continue
        found = _product_of(rewrite, plus, scaled.source)
        if found is not None and rewrite.is_free(i, scaled.number, plus.number, *found):
            last = rewrite.operations[found[-1]]
            assert isinstance(last, Elementwise)
            gone = [i, plus.number, *found[:-1]]
            if rewrite.is_private(scaled.output):
                gone.append(scaled.number)
            rewrite.put(found[-1], Elementwise("gelu", (scaled.source,), last.output), *gone)


def _product_of(rewrite: Rewrite, plus: Step, x: str) -> list[int] | None:
    """Numbers of the products that make x / 2 times the output of `plus`, the last one last."""
    first = rewrite.sole_reader(plus.number)
    op = rewrite.operations[first] if first is not None else None
    if first is None or not isinstance(op, Elementwise) or op.function != "mul":
        return None
    half = _step(rewrite, first, ("mul", "div"))
    if half is not None and _near(half.constant, 0.5):
        last = rewrite.sole_reader(first)
        after = rewrite.operations[last] if last is not None else None
        is_product = isinstance(after, Elementwise) and after.function == "mul" and set(after.inputs) == {x, op.output}
        return [first, last] if last is not None and is_product else None
    other = next((entry for entry in op.inputs if isinstance(entry, str) and entry != plus.output), None)
    if other is None:
        return None
    if other == x:
        after_step = _step(rewrite, rewrite.sole_reader(first), ("mul", "div"))
        return [first, after_step.number] if after_step is not None and _near(after_step.constant, 0.5) else None
    before = _step(rewrite, rewrite.maker(other), ("mul", "div"))
    if before is not None and before.source == x and _near(before.constant, 0.5) and rewrite.is_private(other):
        return [before.number, first]
    return None


def find_layer_norm(rewrite: Rewrite) -> None:
    """d / sqrt(mean(d^2) + epsilon) with d = x - mean(x), then scale and bias where they follow."""
    for i, op in enumerate(rewrite.operations):
        if isinstance(op, Elementwise) and op.function == "div" and all(isinstance(e, str) for e in op.inputs):
            match = _normalised(rewrite, op)
            if match is not None and rewrite.is_free(i, match.centre):
                _put_layer_norm(rewrite, i, match)


@dataclass(frozen=True)
class _Normalised:
    source: str
    axis: int
    epsilon: float
    centre: int  # the operation that takes the mean away


def _normalised(rewrite: Rewrite, division: Elementwise) -> _Normalised | None:
    """What a division normalises, where it is one by a standard deviation."""
    centred, deviation = (str(entry) for entry in division.inputs)
    root = _operation(rewrite, deviation, Elementwise)
    if not isinstance(root, Elementwise) or root.function != "sqrt" or not isinstance(root.inputs[0], str):
        return None
    plus = _step(rewrite, rewrite.maker(root.inputs[0]), ("add",))
    variance = _operation(rewrite, plus.source, Reduce) if plus is not None else None
    if plus is None or not isinstance(variance, Reduce) or variance.kind != "mean" or not variance.keep:
        return None
    centre_number = rewrite.maker(centred, Elementwise)
    centre = rewrite.operations[centre_number] if centre_number is not None else None
    if centre_number is None or not isinstance(centre, Elementwise) or centre.function != "sub":
        return None
    x, mean_name = centre.inputs
    mean = _operation(rewrite, str(mean_name), Reduce)
    if not isinstance(x, str) or not isinstance(mean, Reduce) or mean.kind != "mean" or mean.input != x:
        return None
    rank = len(rewrite.shape(x))
    axes = sorted(axis % rank for axis in mean.axes)
    if axes != list(range(rank - len(axes), rank)) or sorted(a % rank for a in variance.axes) != axes:
        return None
    if not mean.keep or not axes or not _is_square(rewrite, variance.input, centred):
        return None
    return _Normalised(x, axes[0], plus.constant, centre_number)


def _operation(rewrite: Rewrite, name: str, kind: type) -> object:
    i = rewrite.maker(name, kind)
    return rewrite.operations[i] if i is not None else None


def _is_square(rewrite: Rewrite, name: str, of: str) -> bool:
    op = _operation(rewrite, name, Elementwise)
    if not isinstance(op, Elementwise):
        return False
    if op.function == "mul":
        return op.inputs == (of, of)
    power = op.inputs[-1]
    is_two = isinstance(power, np.ndarray) and power.size == 1 and power.reshape(-1)[0] == 2
    return op.function == "pow" and op.inputs[0] == of and is_two


def _put_layer_norm(rewrite: Rewrite, i: int, match: _Normalised) -> None:
    """Put the operation where scale and bias end; what made the deviation is left to become dead code."""
    shape = rewrite.shape(match.source)[match.axis :]
    scale, bias = np.ones(shape, np.float32), None
    last, gone = i, []
    after = _constant_after(rewrite, last, "mul", shape)
    if after is not None:
        gone.append(last)
        last, scale = after
    after = _constant_after(rewrite, last, "add", shape)
    if after is not None:
        gone.append(last)
        last, bias = after
    op = rewrite.operations[last]
    if isinstance(op, Elementwise) and rewrite.is_free(last, *gone):
        new = LayerNorm(match.source, op.output, scale, bias, match.epsilon, match.axis)
        rewrite.put(last, new, *gone)


def _constant_after(rewrite: Rewrite, i: int, function: str, shape: tuple[int, ...]) -> tuple[int, Array] | None:
    """(number, constant) of the only reader of operation i, where it applies a constant of that shape."""
    j = rewrite.sole_reader(i)
    op = rewrite.operations[j] if j is not None else None
    if j is None or not isinstance(op, Elementwise) or op.function != function:
        return None
    constant = next((entry for entry in op.inputs if isinstance(entry, np.ndarray)), None)
    if constant is None or constant.size > math.prod(shape) or constant.ndim > len(shape):
        return None
    return j, np.broadcast_to(constant, shape)
