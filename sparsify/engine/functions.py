"""The functions that an Elementwise operation can apply: one table, read by importers, kernels and tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Function:
    """`compute` takes `arity` arrays and keeps their dtype, unless the result is a truth value."""

    arity: int
    compute: Callable[..., Array]
    is_truth: bool = False


def _per_element(function: Callable[[float], float]) -> Callable[[Array], Array]:
    """A scalar function over an array, in float64: slow and exact."""
    vectorized = np.vectorize(function, otypes=[np.float64])
    return lambda x: vectorized(x).astype(x.dtype)


erf = _per_element(math.erf)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow, as exp only ever sees numbers below 0."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def divide(x: Array, y: Array) -> Array:
    """x / y; integers are truncated towards zero as in C, which is what ONNX asks for."""
    if not np.issubdtype(x.dtype, np.integer):
        return x / y
    if np.any(y == 0):
        raise ZeroDivisionError("integer division by zero")
    quotient = np.abs(x) // np.abs(y)
    return np.where((x < 0) != (y < 0), -quotient, quotient).astype(x.dtype)


def power(x: Array, y: Array) -> Array:
    """x ** y in the dtype of x; the exponent may be of another."""
    if np.issubdtype(x.dtype, np.integer):
        return np.power(x.astype(np.float64), y).astype(x.dtype)
    return np.power(x, y.astype(x.dtype))


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    """x times the normal distribution's cumulative function, in its exact form."""
    return x * (1 + erf(x / np.asarray(math.sqrt(2), x.dtype))) / 2


def gelu_tanh(x: Array) -> Array:
    """The approximation of gelu by tanh."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return (x * (1 + np.tanh(inner)) / 2).astype(x.dtype)


def hard_sigmoid(x: Array, alpha: Array, beta: Array) -> Array:
    """alpha x + beta, kept between 0 and 1."""
    return np.clip(alpha * x + beta, 0, 1)


def elu(x: Array, alpha: Array) -> Array:
    """x where positive, else alpha (exp(x) - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


FUNCTIONS: dict[str, Function] = {
    "abs": Function(1, np.abs),
    "add": Function(2, np.add),
    "and": Function(2, np.logical_and, is_truth=True),
    "cast": Function(1, np.asarray),
    "ceil": Function(1, np.ceil),
    "clip": Function(3, lambda x, low, high: np.minimum(np.maximum(x, low), high)),
    "cos": Function(1, np.cos),
    "div": Function(2, divide),
    "elu": Function(2, elu),
    "equal": Function(2, np.equal, is_truth=True),
    "erf": Function(1, erf),
    "exp": Function(1, np.exp),
    "floor": Function(1, np.floor),
    "gelu": Function(1, gelu),
    "gelu_tanh": Function(1, gelu_tanh),
    "greater": Function(2, np.greater, is_truth=True),
    "greater_or_equal": Function(2, np.greater_equal, is_truth=True),
    "hard_sigmoid": Function(3, hard_sigmoid),
    "isinf": Function(1, np.isinf, is_truth=True),
    "isnan": Function(1, np.isnan, is_truth=True),
    "leaky_relu": Function(2, lambda x, slope: np.where(x >= 0, x, x * slope)),
    "less": Function(2, np.less, is_truth=True),
    "less_or_equal": Function(2, np.less_equal, is_truth=True),
    "log": Function(1, np.log),
    "max": Function(2, np.maximum),
    "min": Function(2, np.minimum),
    "mod": Function(2, np.mod),
    "mul": Function(2, np.multiply),
    "neg": Function(1, np.negative),
    "not": Function(1, np.logical_not, is_truth=True),
    "or": Function(2, np.logical_or, is_truth=True),
    "pow": Function(2, power),
    "reciprocal": Function(1, lambda x: 1 / x),
    "relu": Function(1, lambda x: np.maximum(x, 0)),
    "round": Function(1, np.rint),
    "sigmoid": Function(1, sigmoid),
    "sign": Function(1, np.sign),
    "sin": Function(1, np.sin),
    "softplus": Function(1, softplus),
    "sqrt": Function(1, np.sqrt),
    "sub": Function(2, np.subtract),
    "tanh": Function(1, np.tanh),
    "where": Function(3, np.where),
    "xor": Function(2, np.logical_xor, is_truth=True),
}
