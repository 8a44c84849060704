"""The few idioms of LLVM IR that native stages are written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from sparsify.engine.target import Target

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()
POINTER = ir.PointerType()
STAGE_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64])


@dataclass
class Module:
    """A library while it is written: an LLVM module and the CPU that it is for."""

    llvm: ir.Module
    target: Target

    @property
    def width(self) -> int:
        """Float32 lanes in one vector."""
        return self.target.width

    @property
    def vector(self) -> ir.VectorType:
        """The type of one vector of float32."""
        return ir.VectorType(F32, self.width)


class Body:
    """One native function while it is written: llvmlite's builder and shorthands on it."""

    def __init__(self, module: Module, name: str, kind: ir.FunctionType = STAGE_TYPE) -> None:
        self.module = module
        self.function = ir.Function(module.llvm, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.arguments = self.function.args

    def const(self, number: int) -> ir.Constant:
        """An int64 constant."""
        return ir.Constant(I64, number)

    def at(self, base: ir.Value, index: ir.Value | int, kind: ir.Type) -> ir.Value:
        """&((kind *)base)[index]"""
        index = self.const(index) if isinstance(index, int) else index
        return self.builder.gep(base, [index], source_etype=kind)

    def bytes(self, base: ir.Value, count: ir.Value) -> ir.Value:
        """(char *)base + count"""
        return self.at(base, count, I8)

    def load(self, base: ir.Value, index: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
        """((kind *)base)[index]"""
        return self.builder.load(self.at(base, index, kind), typ=kind, align=align)

    def vector(self, base: ir.Value, index: ir.Value | int) -> ir.Value:
        """The index-th vector of float32 from `base` on, aligned as single numbers are."""
        return self.load(base, index, self.module.vector)

    def store(self, value: ir.Value, base: ir.Value, index: ir.Value | int, align: int = 4) -> None:
        """((kind *)base)[index] = value"""
        self.builder.store(value, self.at(base, index, value.type), align=align)

    def pointer(self, table: ir.Value, index: ir.Value | int) -> ir.Value:
        """((void **)table)[index]"""
        return self.load(table, index, POINTER, align=8)

    def numbers(self, table: ir.Value, count: int) -> list[ir.Value]:
        """The first `count` entries of an int64 array."""
        return [self.load(table, i, I64, align=8) for i in range(count)]

    def splat(self, scalar: ir.Value, width: int | None = None) -> ir.Value:
        """A vector of equal lanes."""
        width = width or self.module.width
        kind = ir.VectorType(scalar.type, width)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        lanes = ir.Constant(ir.VectorType(I32, width), [0] * width)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)

    def zeros(self) -> ir.Constant:
        """A vector of zeros."""
        return ir.Constant(self.module.vector, [0.0] * self.module.width)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a * b + c, fused where the CPU can."""
        name = f"llvm.fmuladd.v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "llvm.fmuladd.f32"
        return self.builder.call(self.declared(name, a.type, [a.type] * 3), [a, b, c])

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger, lane by lane; b where a is not a number, as the machine's own instruction does."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller, lane by lane; b where a is not a number."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def room(self, kind: ir.Type, count: int) -> ir.Value:
        """Address of `count` elements on the stack, on a cache line; ask at the function's beginning."""
        place = self.builder.alloca(ir.ArrayType(kind, count))
        place.align, place.type = 64, POINTER
        return place

    def declared(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        """An outside function or intrinsic, declared once."""
        known = self.module.llvm.globals.get(name)
        return known or ir.Function(self.module.llvm, ir.FunctionType(result, arguments), name)

    def masked_store(self, vector: ir.Value, place: ir.Value, mask: ir.Value) -> None:
        """Store the lanes whose mask bit is set."""
        name = f"llvm.masked.store.v{vector.type.count}f32.p0"
        function = self.declared(name, ir.VoidType(), [vector.type, POINTER, I32, mask.type])
        self.builder.call(function, [vector, place, ir.Constant(I32, 4), mask])

    def gather(self, base: ir.Value, indices: ir.Value) -> ir.Value:
        """base[indices], lane by lane; indices are int32."""
        count = indices.type.count
        addresses = ir.VectorType(POINTER, count)
        places = self.builder.gep(self.splat(base, count), [indices], source_etype=F32)
        places.type = addresses
        name = f"llvm.masked.gather.v{count}f32.v{count}p0"
        kind, mask = ir.VectorType(F32, count), ir.VectorType(ir.IntType(1), count)
        function = self.declared(name, kind, [addresses, I32, mask, kind])
        everywhere, nothing = ir.Constant(mask, [1] * count), ir.Constant(kind, ir.Undefined)
        return self.builder.call(function, [places, ir.Constant(I32, 4), everywhere, nothing])

    def finish_vector(
        self, total: ir.Value, offset: ir.Value, mask: ir.Value, output: ir.Value, residual: ir.Value,
        has_residual: ir.Value, limits: Sequence[ir.Value],
    ) -> None:  # fmt: skip
        """Add the residual, clamp, and store the lanes of `mask` (bits) at `offset` bytes."""
        b, kind = self.builder, total.type
        before = b.block
        with b.if_then(b.icmp_signed("!=", has_residual, self.const(0))):
            added = b.fadd(total, b.load(self.bytes(residual, offset), typ=kind, align=4))
            inside = b.block
        result = b.phi(kind)
        result.add_incoming(total, before)
        result.add_incoming(added, inside)
        result = self.minimum(limits[1], self.maximum(limits[0], result))
        self.masked_store(result, self.bytes(output, offset), self.lanes(mask))

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """min(a, b) of int64."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def at_least(self, number: ir.Value, bound: int) -> ir.Value:
        """max(number, bound) of int64."""
        above = self.builder.icmp_signed(">", number, self.const(bound))
        return self.builder.select(above, number, self.const(bound))

    def first_lanes(self, count: ir.Value) -> ir.Value:
        """A mask of the lanes below `count`, none where it is negative."""
        width = self.module.width
        if self.module.target.level == "avx512":  # whose masks are numbers
            count = self.smaller(self.at_least(count, 0), self.const(width))
            return self.lanes(self.builder.sub(self.builder.shl(self.const(1), count), self.const(1)))
        numbers = ir.Constant(ir.VectorType(I64, width), list(range(width)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def masked_load(self, place: ir.Value, mask: ir.Value) -> ir.Value:
        """The lanes of `mask` from memory, zero in the others, whose memory is not touched."""
        name = f"llvm.masked.load.v{mask.type.count}f32.p0"
        kind = self.module.vector
        function = self.declared(name, kind, [POINTER, I32, mask.type, kind])
        return self.builder.call(function, [place, ir.Constant(I32, 4), mask, self.zeros()])

    def lanes(self, mask: ir.Value) -> ir.Value:
        """The bits of a number, a lane each."""
        width = self.module.width
        narrow = self.builder.trunc(mask, ir.IntType(width))
        return self.builder.bitcast(narrow, ir.VectorType(ir.IntType(1), width))

    def call(self, function: ir.Value, kind: ir.FunctionType, arguments: Sequence[ir.Value]) -> ir.Value:
        """A call through an address."""
        address = self.builder.ptrtoint(function, I64)
        return self.builder.call(self.builder.inttoptr(address, ir.PointerType(kind)), arguments)

    def reduce(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's lanes, in any order."""
        function = self.declared(f"llvm.vector.reduce.fadd.v{vector.type.count}f32", F32, [F32, vector.type])
        return self.builder.call(function, [ir.Constant(F32, 0.0), vector], fastmath=("fast",))

    def prefetch(self, place: ir.Value, level: int, write: bool = False) -> None:
        """Bring a cache line near, before it is read or written, into the cache of this level."""
        function = self.declared("llvm.prefetch.p0", ir.VoidType(), [POINTER, I32, I32, I32])
        hints = [ir.Constant(I32, hint) for hint in (int(write), 4 - level, 1)]
        self.builder.call(function, [place, *hints])

    @contextmanager
    def loop(
        self, start: ir.Value | int, stop: ir.Value | int, step: ir.Value | int = 1, carried: Sequence[ir.Value] = ()
    ) -> Iterator[Loop]:
        """for (index = start; index < stop; index += step), with values carried from turn to turn."""
        builder = self.builder
        start = self.const(start) if isinstance(start, int) else start
        stop = self.const(stop) if isinstance(stop, int) else stop
        before = builder.block
        head, inside, after = (builder.append_basic_block(n) for n in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        index.add_incoming(start, before)
        state = [builder.phi(value.type) for value in carried]
        for phi, value in zip(state, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
        builder.position_at_end(inside)
        turn = Loop(index, state)
        yield turn
        following = builder.add(index, self.const(step) if isinstance(step, int) else step)
        index.add_incoming(following, builder.block)
        for phi, value in zip(state, turn.following or state, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def done(self) -> None:
        """End a function that returns nothing."""
        self.builder.ret_void()


@dataclass
class Loop:
    """Inside a loop: its index and what is carried. Set `following` to what the next turn shall see; after
    the loop `state` holds the last values."""

    index: ir.Value
    state: list[ir.Value]
    following: list[ir.Value] | None = None
