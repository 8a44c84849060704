"""What becomes of the sums of a batch normalisation: one number for each channel, in float64.

    y = scale x + shift        scale = weight slope, shift = bias - mean scale, slope = 1 / sqrt(variance + eps)

Sums stand in [CHUNKS, 2, channels, lanes], float32; exact in float64 [3, channels]: mean, slope, scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from sparsify.engine.ir import F32, Body, Module

CHUNKS = 16  # of positions, each with sums of its own
_F64 = ir.DoubleType()


def emit(module: Module) -> None:
    """sparsify_norm_forward and sparsify_norm_backward."""
    _forward(module)
    _backward(module)


class _Channels:
    """One of the functions while it is written. Constants are those of `norm.py`, and float64 eps and momentum."""

    def __init__(self, module: Module, name: str, buffers: int) -> None:
        self.body = body = Body(module, f"sparsify_norm_{name}")
        table, constants, _ = body.arguments
        self.buffers = [body.pointer(table, i) for i in range(buffers)]
        positions, _, self.channels, self.vectors = body.numbers(constants, 4)
        self.eps, self.momentum = (body.load(constants, i, _F64, align=8) for i in (5, 6))
        b = body.builder
        self.pitch = b.mul(self.vectors, body.const(module.width))
        self.count = b.sitofp(b.mul(positions, self.pitch), _F64)

    @contextmanager
    def each(self) -> Iterator[ir.Value]:
        with self.body.loop(0, self.channels) as channel:
            yield channel.index

    def load(self, buffer: int, channel: ir.Value, row: int = 0, kind: ir.Type = F32) -> ir.Value:
        """A float64 from [rows, channels] of this kind."""
        body, b = self.body, self.body.builder
        found = body.load(self.buffers[buffer], b.add(b.mul(body.const(row), self.channels), channel), kind)
        return b.fpext(found, _F64) if kind == F32 else found

    def store(self, value: ir.Value, buffer: int, channel: ir.Value, row: int = 0, kind: ir.Type = F32) -> None:
        """A float64 into [rows, channels] of this kind."""
        body, b = self.body, self.body.builder
        place = b.add(b.mul(body.const(row), self.channels), channel)
        body.store(b.fptrunc(value, F32) if kind == F32 else value, self.buffers[buffer], place)

    def total(self, buffer: int, channel: ir.Value, which: int) -> ir.Value:
        """One of the two sums over all chunks and lanes."""
        body, b = self.body, self.body.builder
        wide = ir.VectorType(_F64, body.module.width)
        with body.loop(0, CHUNKS, carried=[ir.Constant(wide, [0.0] * body.module.width)]) as chunk:
            row = b.add(b.mul(chunk.index, body.const(2)), body.const(which))
            lanes = body.vector(self.buffers[buffer], b.add(b.mul(row, self.channels), channel))
            chunk.following = [b.fadd(chunk.state[0], b.fpext(lanes, wide))]
        function = body.declared(f"llvm.vector.reduce.fadd.v{body.module.width}f64", _F64, [_F64, wide])
        return b.call(function, [ir.Constant(_F64, 0.0), chunk.state[0]], fastmath=("fast",))


def _forward(module: Module) -> None:
    """buffers: x, sums, weight, bias, running mean and variance, [scale, shift, mean] of float32, exact."""
    walk = _Channels(module, "forward", 8)
    body, b = walk.body, walk.body.builder
    one = ir.Constant(_F64, 1.0)
    with walk.each() as c:
        near = body.load(walk.buffers[0], b.mul(c, walk.pitch), F32)  # that the sums are of differences from
        off = b.fdiv(walk.total(1, c, 0), walk.count)
        mean = b.fadd(b.fpext(near, _F64), off)
        spread = b.fsub(b.fdiv(walk.total(1, c, 1), walk.count), b.fmul(off, off))
        variance = b.select(b.fcmp_ordered("<", spread, ir.Constant(_F64, 0.0)), ir.Constant(_F64, 0.0), spread)
        others = b.fsub(walk.count, one)
        unbiased = b.fdiv(b.fmul(variance, walk.count), b.select(b.fcmp_ordered("<", others, one), one, others))
        for buffer, found in ((4, mean), (5, unbiased)):
            old = walk.load(buffer, c)
            walk.store(b.fadd(old, b.fmul(walk.momentum, b.fsub(found, old))), buffer, c)
        root = body.declared("llvm.sqrt.f64", _F64, [_F64])
        slope = b.fdiv(one, b.call(root, [b.fadd(variance, walk.eps)]))
        scale = b.fmul(walk.load(2, c), slope)
        for row, value in enumerate((scale, b.fsub(walk.load(3, c), b.fmul(mean, scale)), mean)):
            walk.store(value, 6, c, row)
        for row, value in enumerate((mean, slope, scale)):
            walk.store(value, 7, c, row, _F64)
    body.done()


def _backward(module: Module) -> None:
    """buffers: sums of dy and of dy (x - mean), [scale, shift], exact; lines as `norm.py` reads them, dweight, dbias.

    dx = scale (dy - total / count) - scale slope^2 product / count (x - mean)
    """
    walk = _Channels(module, "backward", 6)
    body, b = walk.body, walk.body.builder
    with walk.each() as c:
        total, product = (walk.total(0, c, which) for which in (0, 1))
        mean, slope, scale = (walk.load(2, c, row, _F64) for row in range(3))
        steep = b.fmul(b.fmul(scale, slope), b.fmul(slope, product))
        part = b.fneg(b.fdiv(steep, walk.count))
        constant = b.fneg(b.fadd(b.fdiv(b.fmul(scale, total), walk.count), b.fmul(part, mean)))
        for row, value in enumerate((walk.load(1, c, 0), walk.load(1, c, 1), scale, part, constant)):
            walk.store(value, 3, c, row)
        walk.store(b.fmul(product, slope), 4, c)
        walk.store(total, 5, c)
    body.done()
