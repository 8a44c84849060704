"""Batch normalisation of planes [positions, channels, pitch], with a rectifier behind it or without.

    y = max(floor, scale[c] x + shift[c])        floor: 0, or -inf where nothing is rectified

Numbers that are not numbers pass through, as they do in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from sparsify.engine.ir import F32, Body, Loop, Module

_AHEAD = 512  # vectors; fetched that early, sums of gradients take a fifth less


def emit(module: Module) -> None:
    """sparsify_norm_sums, _apply, _back_sums, _back_apply and _back_apply_add.

    void f(buffers, constants, chunk): a chunk of the positions. constants: int64 [4] of positions, positions of a
    chunk, channels, vectors; and floor in the first half of a fifth.
    """
    _sums(module)
    _apply(module)
    _back_sums(module)
    _back_apply(module, "back_apply", False)
    _back_apply(module, "back_apply_add", True)


class _Walk:
    """One of the functions while it is written: its loops and what they read."""

    def __init__(self, module: Module, name: str, buffers: int) -> None:
        self.body = body = Body(module, f"sparsify_norm_{name}")
        table, constants, self.chunk = body.arguments
        self.buffers = [body.pointer(table, i) for i in range(buffers)]
        self.positions, self.chunked, self.channels, self.vectors = body.numbers(constants, 4)
        self.floor = body.splat(body.load(constants, 8, F32))

    @contextmanager
    def channel_of_each_position(self) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Channel, and number of the first of its vectors."""
        body, b = self.body, self.body.builder
        begin = b.mul(self.chunk, self.chunked)
        end = body.smaller(self.positions, b.add(begin, self.chunked))
        with body.loop(begin, end) as position, body.loop(0, self.channels) as channel:
            yield channel.index, b.mul(b.add(b.mul(position.index, self.channels), channel.index), self.vectors)

    def load(self, buffer: int, vector: ir.Value) -> ir.Value:
        return self.body.vector(self.buffers[buffer], vector)

    def store(self, value: ir.Value, buffer: int, vector: ir.Value) -> None:
        self.body.store(value, self.buffers[buffer], vector)

    def coefficients(self, buffer: int, channel: ir.Value, count: int) -> list[ir.Value]:
        """Of a channel, from [count, channels]."""
        body, b = self.body, self.body.builder
        places = [b.add(b.mul(body.const(i), self.channels), channel) for i in range(count)]
        return [body.splat(body.load(self.buffers[buffer], place, F32)) for place in places]

    def clear(self, buffer: int) -> None:
        """Zeros in the chunk's sums."""
        body, b = self.body, self.body.builder
        count = b.mul(self.channels, body.const(2))
        with body.loop(0, count) as row:
            self.store(body.zeros(), buffer, b.add(b.mul(self.chunk, count), row.index))

    @contextmanager
    def sums(self, buffer: int, channel: ir.Value, first: ir.Value) -> Iterator[tuple[Loop, ir.Value]]:
        """Over the vectors from the first on: a loop that carries the chunk's two sums, and the vector's number.

        They stand in [chunks, 2, channels, lanes].
        """
        body, b = self.body, self.body.builder
        rows = [b.add(b.mul(self.chunk, body.const(2)), body.const(i)) for i in (0, 1)]
        places = [b.add(b.mul(row, self.channels), channel) for row in rows]
        with body.loop(0, self.vectors, carried=[self.load(buffer, place) for place in places]) as v:
            yield v, b.add(first, v.index)
        for total, place in zip(v.state, places, strict=True):
            self.store(total, buffer, place)


def _sums(module: Module) -> None:
    """buffers: x, sums: of x - near and of its square, near the channel's first number: small ones lose less."""
    walk = _Walk(module, "sums", 2)
    body, b = walk.body, walk.body.builder
    walk.clear(1)
    pitch = b.mul(walk.vectors, body.const(module.width))
    with walk.channel_of_each_position() as (channel, first):
        near = body.splat(body.load(walk.buffers[0], b.mul(channel, pitch), F32))
        with walk.sums(1, channel, first) as (v, here):
            centred = b.fsub(walk.load(0, here), near)
            v.following = [b.fadd(v.state[0], centred), body.fma(centred, centred, v.state[1])]
    body.done()


def _apply(module: Module) -> None:
    """buffers: x, [scale, shift], y."""
    walk = _Walk(module, "apply", 3)
    body, b = walk.body, walk.body.builder
    with walk.channel_of_each_position() as (channel, first):
        scale, shift = walk.coefficients(1, channel, 2)
        with body.loop(0, walk.vectors) as v:
            here = b.add(first, v.index)
            walk.store(body.maximum(walk.floor, body.fma(walk.load(0, here), scale, shift)), 2, here)
    body.done()


def _passed(walk: _Walk, x: ir.Value, dy: ir.Value, scale: ir.Value, shift: ir.Value) -> ir.Value:
    """The gradient behind the rectifier."""
    body, b = walk.body, walk.body.builder
    return b.select(b.fcmp_unordered(">", body.fma(x, scale, shift), walk.floor), dy, body.zeros())


def _back_sums(module: Module) -> None:
    """buffers: x, dy, [scale, shift, mean], sums: of the gradient and of its product with x - mean."""
    walk = _Walk(module, "back_sums", 4)
    body, b = walk.body, walk.body.builder
    walk.clear(3)
    with walk.channel_of_each_position() as (channel, first):
        scale, shift, mean = walk.coefficients(2, channel, 3)
        with walk.sums(3, channel, first) as (v, here):
            for buffer in walk.buffers[:2]:  # which no cache holds any more
                body.prefetch(body.at(buffer, b.add(here, body.const(_AHEAD)), module.vector), 2)
            x = walk.load(0, here)
            passed = _passed(walk, x, walk.load(1, here), scale, shift)
            v.following = [b.fadd(v.state[0], passed), body.fma(passed, b.fsub(x, mean), v.state[1])]
    body.done()


def _back_apply(module: Module, name: str, adds: bool) -> None:
    """buffers: x, dy, [scale, shift, of the gradient, of x, constant], dx and, if it adds, what is added to dx."""
    walk = _Walk(module, name, 5 if adds else 4)
    body, b = walk.body, walk.body.builder
    with walk.channel_of_each_position() as (channel, first):
        scale, shift, slope, part, constant = walk.coefficients(2, channel, 5)
        with body.loop(0, walk.vectors) as v:
            here = b.add(first, v.index)
            x = walk.load(0, here)
            passed = _passed(walk, x, walk.load(1, here), scale, shift)
            dx = body.fma(passed, slope, body.fma(x, part, constant))
            walk.store(b.fadd(dx, walk.load(4, here)) if adds else dx, 3, here)
    body.done()
