"""Vectors of exp, log, erf, sigmoid and tanh in LLVM IR, to within a few units of float32's precision.

`tests/engine/test_vector_math.py` holds the error bounds that the docstrings state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from sparsify.engine.ir import I32, Body

LOG2E = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 0.693359375, math.log(2) - 0.693359375  # in two parts: their multiples are exact
HIGHEST, LOWEST = 88.722, -86.6  # of exp's operand: the result stays a normal number
EXPONENT_BIAS, MANTISSA_BITS = 127, 23
SMALLEST = 2.0**-126  # normal number
ROOT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as float32
# Taylor's series of tanh(x) / x in x^2, and of erf(x) / x.
TANH, TANH_SMALL = (1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075), 0.55
ERF = [2 / math.sqrt(math.pi) * (-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(8)]
ERF_SMALL, ERF_P = 0.6, 0.3275911
ERF_TAIL = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def constant(value: ir.Value, number: float) -> ir.Constant:
    """A number in every lane of a vector like `value`."""
    kind = value.type
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [number] * kind.count)
    return ir.Constant(kind, number)


def intrinsic(body: Body, name: str, *operands: ir.Value) -> ir.Value:
    """One of LLVM's functions of float32 numbers or vectors."""
    kind = operands[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = body.declared(f"llvm.{name}.{suffix}", kind, [kind] * len(operands))
    return body.builder.call(function, operands)


def exp(body: Body, x: ir.Value) -> ir.Value:
    """2^n times exp(r), where |r| is at most half of log 2 and a polynomial of degree 7 serves.

    Relative error below 3e-7; operands beyond the limits are clamped to them.
    """
    b = body.builder
    x = body.minimum(constant(x, HIGHEST), body.maximum(constant(x, LOWEST), x))
    n = intrinsic(body, "rint", b.fmul(x, constant(x, LOG2E)))
    r = body.fma(n, constant(x, -LN2_HIGH), x)
    r = body.fma(n, constant(x, -LN2_LOW), r)
    total = constant(x, 1 / math.factorial(7))
    for degree in range(6, -1, -1):
        total = body.fma(total, r, constant(x, 1 / math.factorial(degree)))
    integers = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32
    whole = b.fptosi(n, integers)
    # in two factors, because 2^128 is no float32
    bits = b.shl(b.add(whole, constant(whole, EXPONENT_BIAS - 1)), constant(whole, MANTISSA_BITS))
    return b.fmul(b.fadd(total, total), b.bitcast(bits, x.type))


def sigmoid(body: Body, x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x))."""
    b = body.builder
    return b.fdiv(constant(x, 1.0), b.fadd(constant(x, 1.0), exp(body, b.fneg(x))))


def tanh(body: Body, x: ir.Value) -> ir.Value:
    """1 - 2 / (exp(2 x) + 1); exact to 1e-7 of 1, not of a small result."""
    b = body.builder
    double = exp(body, b.fmul(constant(x, 2.0), x))
    return b.fsub(constant(x, 1.0), b.fdiv(constant(x, 2.0), b.fadd(double, constant(x, 1.0))))


def polynomial(body: Body, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    """The sum of coefficients[i] x^i."""
    total: ir.Value = constant(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = body.fma(total, x, constant(x, coefficient))
    return total


def exact_exp(body: Body, x: ir.Value) -> ir.Value:
    """exp as `exp`, but 0 below its limit and infinity above."""
    b, found = body.builder, exp(body, x)
    found = b.select(b.fcmp_ordered("<", x, constant(x, LOWEST)), constant(x, 0.0), found)
    return b.select(b.fcmp_ordered(">", x, constant(x, HIGHEST)), constant(x, math.inf), found)


def exact_tanh(body: Body, x: ir.Value) -> ir.Value:
    """tanh to a relative error of 5e-7, also of small numbers: an odd polynomial serves below 0.55."""
    b = body.builder
    small = b.fmul(x, polynomial(body, b.fmul(x, x), TANH))
    is_small = b.fcmp_ordered("<", absolute(body, x), constant(x, TANH_SMALL))
    return b.select(is_small, small, tanh(body, x))


def absolute(body: Body, x: ir.Value) -> ir.Value:
    """|x|."""
    return intrinsic(body, "fabs", x)


def erf(body: Body, x: ir.Value) -> ir.Value:
    """The error function: its series below 0.6, Abramowitz and Stegun's formula 7.1.26 above; error below 5e-7."""
    b = body.builder
    squared, size = b.fmul(x, x), absolute(body, x)
    small = b.fmul(x, polynomial(body, squared, ERF))
    t = b.fdiv(constant(x, 1.0), body.fma(size, constant(x, ERF_P), constant(x, 1.0)))
    tail = b.fmul(b.fmul(t, polynomial(body, t, ERF_TAIL)), exp(body, b.fneg(squared)))
    large = intrinsic(body, "copysign", b.fsub(constant(x, 1.0), tail), x)
    return b.select(b.fcmp_ordered("<", size, constant(x, ERF_SMALL)), small, large)


def log(body: Body, x: ir.Value) -> ir.Value:
    """log(m 2^e) = log(m) + e log 2, m from sqrt(1/2) to sqrt(2), its logarithm by the series of artanh.

    Error below 3e-7 of the result or of 1; minus infinity of 0, not a number below 0.
    """
    b = body.builder
    whole = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32
    normal = intrinsic(body, "maxnum", x, constant(x, SMALLEST))
    bits = b.bitcast(normal, whole)
    offset = b.sub(bits, constant(bits, ROOT_HALF_BITS))
    exponent = b.ashr(offset, constant(bits, MANTISSA_BITS))
    mantissa = b.bitcast(b.sub(bits, b.shl(exponent, constant(bits, MANTISSA_BITS))), x.type)
    ratio = b.fdiv(b.fsub(mantissa, constant(x, 1.0)), b.fadd(mantissa, constant(x, 1.0)))
    series = b.fmul(ratio, polynomial(body, b.fmul(ratio, ratio), [2 / k for k in (1, 3, 5, 7, 9)]))
    found = body.fma(b.sitofp(exponent, x.type), constant(x, math.log(2)), series)
    found = b.select(b.fcmp_ordered("==", x, constant(x, math.inf)), x, found)
    found = b.select(b.fcmp_ordered("==", x, constant(x, 0.0)), constant(x, -math.inf), found)
    return b.select(b.fcmp_unordered("<", x, constant(x, 0.0)), constant(x, math.nan), found)
