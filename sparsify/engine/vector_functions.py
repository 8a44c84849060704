"""What elementwise functions do to a vector of float32. Truth values are 0 and 1.

A function that is missing here runs in numpy; `functions.py` says what each of them means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from llvmlite import ir

from sparsify.engine.ir import Body
from sparsify.engine.vector_math import (
    absolute,
    constant,
    erf,
    exact_exp,
    exact_tanh,
    exp,
    intrinsic,
    log,
    polynomial,
    sigmoid,
)

Vector: TypeAlias = ir.Value
Apply = Callable[..., Vector]  # (body, operands...) -> result


def _truth(comparison: str, ordered: bool = True) -> Apply:
    def apply(body: Body, x: Vector, y: Vector) -> Vector:
        compare = body.builder.fcmp_ordered if ordered else body.builder.fcmp_unordered
        return _as_number(body, compare(comparison, x, y), x)

    return apply


def _as_number(body: Body, condition: ir.Value, like: Vector) -> Vector:
    return body.builder.select(condition, constant(like, 1.0), constant(like, 0.0))


def _is_true(body: Body, x: Vector) -> ir.Value:
    return body.builder.fcmp_unordered("!=", x, constant(x, 0.0))


def as_truth(body: Body, x: Vector) -> Vector:
    """1 where x is not 0."""
    return _as_number(body, _is_true(body, x), x)


def _select(body: Body, condition: Vector, x: Vector, y: Vector) -> Vector:
    return body.builder.select(_is_true(body, condition), x, y)


def _either(body: Body, choose: Apply, x: Vector, y: Vector) -> Vector:
    """The larger or the smaller; not a number where one of them is not."""
    b = body.builder
    return b.select(b.fcmp_unordered("uno", x, y), b.fadd(x, y), choose(x, y))


def _max(body: Body, x: Vector, y: Vector) -> Vector:
    return _either(body, body.maximum, x, y)


def _min(body: Body, x: Vector, y: Vector) -> Vector:
    return _either(body, body.minimum, x, y)


def _relu(body: Body, x: Vector) -> Vector:
    return body.maximum(constant(x, 0.0), x)


def _gelu(body: Body, x: Vector) -> Vector:
    b = body.builder
    half = b.fmul(x, constant(x, 0.5))
    return body.fma(half, erf(body, b.fmul(x, constant(x, 0.5**0.5))), half)


def _gelu_tanh(body: Body, x: Vector) -> Vector:
    """x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is the formula with tanh."""
    b, root = body.builder, 1.5957691216057308
    inner = b.fmul(x, polynomial(body, b.fmul(x, x), (root, root * 0.044715)))
    return b.fmul(x, sigmoid(body, inner))


def _softplus(body: Body, x: Vector) -> Vector:
    b = body.builder
    small = exp(body, b.fneg(absolute(body, x)))
    return b.fadd(_relu(body, x), log(body, b.fadd(small, constant(x, 1.0))))


def _elu(body: Body, x: Vector, alpha: Vector) -> Vector:
    b = body.builder
    below = b.fsub(exp(body, body.minimum(x, constant(x, 0.0))), constant(x, 1.0))
    return b.select(b.fcmp_ordered(">", x, constant(x, 0.0)), x, b.fmul(alpha, below))


def _leaky_relu(body: Body, x: Vector, slope: Vector) -> Vector:
    b = body.builder
    return b.select(b.fcmp_ordered(">=", x, constant(x, 0.0)), x, b.fmul(x, slope))


def _hard_sigmoid(body: Body, x: Vector, alpha: Vector, beta: Vector) -> Vector:
    inner = body.fma(alpha, x, beta)
    return body.minimum(constant(x, 1.0), body.maximum(constant(x, 0.0), inner))


def _sign(body: Body, x: Vector) -> Vector:
    b = body.builder
    signed = b.select(b.fcmp_ordered("<", x, constant(x, 0.0)), constant(x, -1.0), x)
    return b.select(b.fcmp_ordered(">", x, constant(x, 0.0)), constant(x, 1.0), signed)


def _plain(instruction: str) -> Apply:
    return lambda body, x, y: getattr(body.builder, instruction)(x, y)


def _intrinsic(name: str) -> Apply:
    return lambda body, x: intrinsic(body, name, x)


VECTOR: dict[str, Apply] = {
    "abs": absolute,
    "add": _plain("fadd"),
    "and": lambda body, x, y: _select(body, x, y, constant(x, 0.0)),
    "ceil": _intrinsic("ceil"),
    "clip": lambda body, x, low, high: _min(body, _max(body, x, low), high),
    "div": _plain("fdiv"),
    "elu": _elu,
    "equal": _truth("=="),
    "erf": erf,
    "exp": exact_exp,
    "floor": _intrinsic("floor"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "greater": _truth(">"),
    "greater_or_equal": _truth(">="),
    "hard_sigmoid": _hard_sigmoid,
    "isinf": lambda body, x: _truth("==")(body, absolute(body, x), constant(x, float("inf"))),
    "isnan": lambda body, x: _truth("uno", ordered=False)(body, x, x),
    "leaky_relu": _leaky_relu,
    "less": _truth("<"),
    "less_or_equal": _truth("<="),
    "log": log,
    "max": _max,
    "min": _min,
    "mul": _plain("fmul"),
    "neg": lambda body, x: body.builder.fneg(x),
    "not": lambda body, x: _select(body, x, constant(x, 0.0), constant(x, 1.0)),
    "or": lambda body, x, y: _select(body, x, constant(x, 1.0), y),
    "reciprocal": lambda body, x: body.builder.fdiv(constant(x, 1.0), x),
    "relu": _relu,
    "round": _intrinsic("rint"),
    "sigmoid": sigmoid,
    "sign": _sign,
    "softplus": _softplus,
    "sqrt": _intrinsic("sqrt"),
    "sub": _plain("fsub"),
    "tanh": exact_tanh,
    "where": _select,
    "xor": lambda body, x, y: _truth("!=")(body, x, y),
}
