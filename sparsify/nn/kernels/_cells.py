"""What one step in time does to one vector of a GRU's or LSTM's hidden unit, and its derivatives.

A gate's sum is x + z: x the share of the input, z that of the state, biases included. Both cells leave four vectors for
the backward pass in the place of the x of their gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from sparsify.engine.ir import Body
from sparsify.engine.vector_math import constant, exact_tanh, sigmoid

KEPT = 4  # vectors of a unit that the forward pass keeps, and gradients that the backward pass finds


@dataclass
class Forward:
    """Of one unit: what is kept, the next state and, of an LSTM, the next cell."""

    kept: Sequence[ir.Value]
    state: ir.Value
    cell: ir.Value | None = None


@dataclass
class Backward:
    """Of one unit: gradients of all KEPT places, and what goes on to the step before without a product."""

    gradients: Sequence[ir.Value]
    carried: ir.Value


class GRU:
    """r = s(xr + zr), u = s(xu + zu), n = tanh(xn + r zn), h' = n + u (h - n); cuDNN's form of Cho et al. 2014.

    Kept are n, r, u and zn, so that the gradients of x are the first three places, and those of z the last three.
    """

    gates = 3
    inputs = ("new", "reset", "update")  # the x of these stand in the first places
    states = ("reset", "update", "new")  # the z, and from place KEPT - gates on their gradients
    has_cell = False

    def forward(self, body: Body, x: Sequence[ir.Value], z: Sequence[ir.Value], h: ir.Value, c: ir.Value) -> Forward:
        b = body.builder
        (xn, xr, xu), (zr, zu, zn) = x, z
        r, u = sigmoid(body, b.fadd(xr, zr)), sigmoid(body, b.fadd(xu, zu))
        n = exact_tanh(body, body.fma(r, zn, xn))
        return Forward([n, r, u, zn], body.fma(u, b.fsub(h, n), n))

    def backward(
        self, body: Body, kept: Sequence[ir.Value], h: ir.Value, c: ir.Value, dh: ir.Value, carried: ir.Value
    ) -> Backward:
        b = body.builder
        one = constant(h, 1.0)
        n, r, u, zn = kept
        dh = b.fadd(dh, carried)
        dn = b.fmul(b.fmul(dh, b.fsub(one, u)), b.fsub(one, b.fmul(n, n)))
        du = b.fmul(b.fmul(dh, b.fsub(h, n)), b.fmul(u, b.fsub(one, u)))
        dr = b.fmul(b.fmul(dn, zn), b.fmul(r, b.fsub(one, r)))
        return Backward([dn, dr, du, b.fmul(dn, r)], b.fmul(dh, u))


class LSTM:
    """i, f, o = s(x + z), g = tanh(x + z), c' = f c + i g, h' = o tanh(c'); Hochreiter and Schmidhuber 1997.

    Kept are i, f, g and o.
    """

    gates = 4
    inputs = states = ("in", "forget", "cell", "out")
    has_cell = True

    def forward(self, body: Body, x: Sequence[ir.Value], z: Sequence[ir.Value], h: ir.Value, c: ir.Value) -> Forward:
        b = body.builder
        sums = [b.fadd(*pair) for pair in zip(x, z, strict=True)]
        i, f, o = (sigmoid(body, sums[gate]) for gate in (0, 1, 3))
        g = exact_tanh(body, sums[2])
        c = body.fma(f, c, b.fmul(i, g))
        return Forward([i, f, g, o], b.fmul(o, exact_tanh(body, c)), c)

    def backward(
        self, body: Body, kept: Sequence[ir.Value], h: ir.Value, c: ir.Value, dh: ir.Value, carried: ir.Value
    ) -> Backward:
        b = body.builder
        one = constant(h, 1.0)
        i, f, g, o = kept
        tanh = exact_tanh(body, body.fma(f, c, b.fmul(i, g)))
        dc = body.fma(b.fmul(dh, o), b.fsub(one, b.fmul(tanh, tanh)), carried)
        slopes = [b.fmul(gate, b.fsub(one, gate)) for gate in (i, f, o)]
        di, df = b.fmul(b.fmul(dc, g), slopes[0]), b.fmul(b.fmul(dc, c), slopes[1])
        dg = b.fmul(b.fmul(dc, i), b.fsub(one, b.fmul(g, g)))
        do = b.fmul(b.fmul(dh, tanh), slopes[2])
        return Backward([di, df, dg, do], b.fmul(dc, f))


CELLS: dict[str, GRU | LSTM] = {"gru": GRU(), "lstm": LSTM()}
