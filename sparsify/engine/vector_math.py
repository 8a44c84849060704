"""Vectors of exp, sigmoid and tanh in LLVM IR, to within a few units of float32's precision."""

from __future__ import annotations

import math

from llvmlite import ir

from sparsify.engine.ir import I32, Body

LOG2E = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 0.693359375, math.log(2) - 0.693359375  # in two parts: their multiples are exact
HIGHEST, LOWEST = 88.3, -87.3  # of exp's operand: the result stays a normal number
EXPONENT_BIAS, MANTISSA_BITS = 127, 23


def constant(value: ir.Value, number: float) -> ir.Constant:
    """A number in every lane of a vector like `value`."""
    kind = value.type
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [number] * kind.count)
    return ir.Constant(kind, number)


def _intrinsic(body: Body, name: str, *operands: ir.Value) -> ir.Value:
    """One of LLVM's functions of float32 numbers or vectors."""
    kind = operands[0].type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    function = body.declared(f"llvm.{name}.{suffix}", kind, [kind] * len(operands))
    return body.builder.call(function, operands)


def exp(body: Body, x: ir.Value) -> ir.Value:
    """2^n times exp(r), where |r| is at most half of log 2 and a polynomial of degree 7 serves."""
    b = body.builder
    x = body.minimum(constant(x, HIGHEST), body.maximum(constant(x, LOWEST), x))
    n = _intrinsic(body, "rint", b.fmul(x, constant(x, LOG2E)))
    r = body.fma(n, constant(x, -LN2_HIGH), x)
    r = body.fma(n, constant(x, -LN2_LOW), r)
    total = constant(x, 1 / math.factorial(7))
    for degree in range(6, -1, -1):
        total = body.fma(total, r, constant(x, 1 / math.factorial(degree)))
    integers = ir.VectorType(I32, x.type.count) if isinstance(x.type, ir.VectorType) else I32
    whole = b.fptosi(n, integers)
    bits = b.shl(b.add(whole, constant(whole, EXPONENT_BIAS)), constant(whole, MANTISSA_BITS))
    return b.fmul(total, b.bitcast(bits, x.type))


def sigmoid(body: Body, x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x))."""
    b = body.builder
    return b.fdiv(constant(x, 1.0), b.fadd(constant(x, 1.0), exp(body, b.fneg(x))))


def tanh(body: Body, x: ir.Value) -> ir.Value:
    """1 - 2 / (exp(2 x) + 1); exact to 1e-7 of 1, not of a small result."""
    b = body.builder
    double = exp(body, b.fmul(constant(x, 2.0), x))
    return b.fsub(constant(x, 1.0), b.fdiv(constant(x, 2.0), b.fadd(double, constant(x, 1.0))))
