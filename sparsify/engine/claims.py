"""Scratch memory of which each thread has a room: the rooms' flags first, a cache line each, then the rooms."""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import I64, Body
from sparsify.engine.memory import LINE


def scratch(threads: int, room: int) -> int:
    """Bytes for `threads` rooms of `room` bytes, which must be whole cache lines."""
    return threads * (LINE + room)


def claim(body: Body, flags: ir.Value, home: ir.Value, threads: ir.Value, room: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A room for now, to be released: its flag and its address. From the one numbered `home` on the first that is
    free is taken."""
    b = body.builder
    before, look, taken = b.block, b.append_basic_block("look"), b.append_basic_block("taken")
    b.branch(look)
    b.position_at_end(look)
    number = b.phi(I64)
    number.add_incoming(home, before)
    flag = body.at(flags, b.mul(number, body.const(LINE // 8)), I64)
    was = b.atomic_rmw("xchg", flag, body.const(1), "acquire")
    number.add_incoming(b.urem(b.add(number, body.const(1)), threads), look)
    b.cbranch(b.icmp_signed("==", was, body.const(0)), taken, look)
    b.position_at_end(taken)
    return flag, body.bytes(flags, b.add(b.mul(threads, body.const(LINE)), b.mul(number, room)))


def release(body: Body, flag: ir.Value) -> None:
    """Let others have the room."""
    body.builder.atomic_rmw("xchg", flag, body.const(0), "release")
