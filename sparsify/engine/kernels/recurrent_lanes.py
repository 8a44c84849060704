"""GRU and LSTM layers over a batch: a sequence in each lane of a vector.

A step multiplies the recurrence matrix with the last hidden states as planes [hidden, sequences]: each non-zero is one
number for a whole vector of sequences, so that the matrix is read once for all of them. What comes in and goes out
is in C order and is transposed in registers, a square of hidden units and sequences at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine import nonzeros
from sparsify.engine.gates import (
    CELL,
    GATES,
    HIDDEN,
    INPUT,
    LAST_CELL,
    LAST_HIDDEN,
    NUMBERS,
    RESET_FIRST,
    SEQUENCE,
    Frame,
    gru,
    kind_of,
    lstm,
    native,
    numbers,
    padded_rows,
)
from sparsify.engine.ir import F32, I16, I64, Body, Module
from sparsify.engine.program import Operation, Recurrent
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.transpose import square

_VECTORS = (1, 2, 4)  # of sequences in a tile
_CHAIN = {1: 4, 2: 4, 4: 2}  # sums for each of them, so that additions do not wait for each other
_PRODUCT, _VECTOR = 0.05e-9, 0.19e-9  # seconds a non-zero, and for each vector of sequences besides
_BYTES, _NEAR = 6, 512 << 10  # of a non-zero; of a thread's part of the matrix that its core keeps near
_UNITS = 0.7e-6  # seconds of the gates and transpositions of a vector of hidden units and sequences


def propose(operation: Operation, context: Context) -> Proposal | None:
    """A Recurrent whose input already holds the gates' share of it, in C order, and that does not reset first."""
    held = native(operation, context)
    if held is None or kind_of(held[0]) == RESET_FIRST:
        return None
    operation, (steps, images, hidden) = held
    width = context.target.width
    blocks = -(-images // width)
    vectors = max(count for count in _VECTORS if count <= blocks)
    groups = -(-blocks // vectors)
    found = nonzeros.count(operation.recurrence)
    products = found * (_PRODUCT + vectors * _VECTOR) * (1 if found * _BYTES <= _NEAR * context.threads else 2)
    seconds = steps * groups * (products + vectors * -(-hidden // width) * _UNITS) / context.threads
    return Proposal(seconds, lambda: _stage(operation, context, vectors, groups, seconds))


def _stage(operation: Recurrent, context: Context, vectors: int, groups: int, seconds: float) -> Stage:
    steps, images, _ = context.values[operation.input].shape
    hidden, width, kind = operation.recurrence.shape[1], context.target.width, kind_of(operation)
    parts = -(-hidden // width)
    first, column, value = _packed(operation, width, _CHAIN[vectors])
    bias = np.zeros((GATES[kind], parts * width), np.float32)
    bias[:, :hidden] = operation.bias[1].reshape(GATES[kind], hidden)
    found = nonzeros.count(operation.recurrence)
    # Planes of whole vectors of sequences hold the gates' share as it is wanted; else it comes in C order.
    layout = context.layouts[operation.input]
    share = layout if layout is not None and layout.lanes == width and images % width == layout.lead == 0 else None
    step = 0 if share is None else share.plane * share.step
    parameters = [*numbers(operation, steps, images, width, parts), step]
    constants = (np.array(parameters, np.int64), bias, first, column, value)
    return Stage(
        kernel="recurrent_lanes",
        function=_name(kind, vectors),
        reads=(operation.input, *(name for name in operation.initial if name)),
        writes=tuple(name for name in operation.outputs if name),
        tiles=groups * parts,
        steps=1 + steps,
        constants=constants,
        layouts={} if share is None else {operation.input: share},
        scratch=4 * _PLANES * groups * vectors * width * parts * width,
        flops=2.0 * found * steps * images,
        density=found / operation.recurrence.size,
        seconds=seconds,
        why=f"{steps} steps of {images} sequences in lanes",
    )


_PLANES = 3  # the hidden state before and after a step, in turn, and an LSTM's cell state


def _packed(operation: Recurrent, width: int, chain: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The recurrence matrix by rows, each gate filled up to whole vectors of rows and each row to whole chains.

    int64 [rows + 1] of where a row begins, uint16 and float32 [entries] of columns and values.
    """
    padded = padded_rows(operation, width)
    row, column, value = nonzeros.find(padded.reshape(-1, padded.shape[2]))
    counts = np.bincount(row, minlength=padded.shape[0] * padded.shape[1])
    first = np.concatenate([[0], np.cumsum(-(-counts // chain) * chain)]).astype(np.int64)
    place = first[row] + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    columns, values = np.zeros(first[-1], np.uint16), np.zeros(first[-1], np.float32)
    columns[place], values[place] = column, value
    return first, columns, values


def _name(kind: str, vectors: int) -> str:
    return f"sparsify_{kind}_lanes_{vectors}"


def emit(module: Module) -> None:
    """void sparsify_<kind>_lanes_<vectors>(buffers, constants, tile): a step of some units of some sequences."""
    for kind in GATES:
        for vectors in _VECTORS:
            if kind != RESET_FIRST:
                _Tile(module, kind, vectors).emit()


@dataclass
class _Planes:
    """Addresses of a tile's units in the planes of its sequences, and of all units before the step."""

    before: ir.Value
    state: ir.Value
    old: ir.Value
    cell: ir.Value


class _Tile:
    """A vector of hidden units of some vectors of sequences. In between, [unit, vector of sequences] is flat."""

    def __init__(self, module: Module, kind: str, vectors: int) -> None:
        self.body = body = Body(module, _name(kind, vectors))
        self.kind, self.vectors, self.width, self.vector = kind, vectors, module.width, module.vector
        b = body.builder
        buffers, self.constants, tile = body.arguments
        self.step = body.load(body.pointer(self.constants, 0), NUMBERS, I64, align=8)
        self.frame = frame = Frame(body, kind, buffers, body.pointer(self.constants, 0))
        self.flat = vectors * self.width
        self.sums, self.shares = (body.room(self.vector, GATES[kind] * self.flat) for _ in range(2))
        group, self.block = b.udiv(tile, frame.parts), b.urem(tile, frame.parts)
        self.first = b.mul(group, body.const(self.flat))  # sequence
        self.units = frame.lanes(self.block)
        plane = b.mul(frame.whole, body.const(vectors))
        here = b.mul(self.block, body.const(self.flat))
        base = body.at(frame.scratch, b.mul(b.mul(group, body.const(_PLANES)), plane), self.vector)
        turn = b.and_(frame.step, body.const(1))
        before, after = (body.at(base, b.mul(i, plane), self.vector) for i in (b.xor(turn, body.const(1)), turn))
        cell = body.at(base, b.add(b.mul(body.const(2), plane), here), self.vector)
        self.planes = _Planes(before, body.at(after, here, self.vector), body.at(before, here, self.vector), cell)

    def emit(self) -> None:
        """Step 0 brings the initial states; each further one is a step in time."""
        body, frame, b = self.body, self.frame, self.body.builder
        with b.if_else(b.icmp_signed("==", frame.step, body.const(0))) as (begins, goes_on):
            with begins:
                for role, plane in ((HIDDEN, self.planes.state), (CELL, self.planes.cell)):
                    self._bring(role, plane)
            with goes_on:
                time = b.sub(frame.step, body.const(1))
                self._products()
                self._take_shares(time)
                self._gates()
                self._write(SEQUENCE, self.planes.state, frame.offset(time, body.const(0)))
                with b.if_then(b.icmp_signed("==", frame.step, frame.steps)):
                    self._write(LAST_HIDDEN, self.planes.state, body.const(0))
                    self._write(LAST_CELL, self.planes.cell, body.const(0))
        body.done()

    def _products(self) -> None:
        """The matrix's rows times the states, plus bias, of each gate of each unit."""
        body, frame, b = self.body, self.frame, self.body.builder
        bias, first, columns, values = (body.pointer(self.constants, i) for i in range(1, 5))
        chain = _CHAIN[self.vectors]
        with body.loop(0, frame.gates) as gate, body.loop(0, self.width) as unit:
            row = b.add(b.mul(gate.index, frame.whole), b.add(b.mul(self.block, body.const(self.width)), unit.index))
            edges = [body.load(first, b.add(row, body.const(i)), I64, align=8) for i in (0, 1)]
            begin = [body.splat(body.load(bias, row, F32))] * self.vectors
            rest = [body.zeros()] * (self.vectors * (chain - 1))
            with body.loop(edges[0], edges[1], chain, begin + rest) as entry:
                entry.following = []
                for i in range(chain):
                    at = b.add(entry.index, body.const(i))
                    column = b.zext(body.load(columns, at, I16, align=2), I64)
                    weight = body.splat(body.load(values, at, F32))
                    state = body.at(self.planes.before, b.mul(column, body.const(self.vectors)), self.vector)
                    for j in range(self.vectors):
                        number = b.load(body.at(state, j, self.vector), typ=self.vector, align=4)
                        entry.following.append(body.fma(weight, number, entry.state[i * self.vectors + j]))
            place = b.add(b.mul(gate.index, body.const(self.flat)), b.mul(unit.index, body.const(self.vectors)))
            for j in range(self.vectors):
                total = entry.state[j]
                for i in range(1, chain):
                    total = b.fadd(total, entry.state[i * self.vectors + j])
                body.store(total, self.sums, b.add(place, body.const(j)))

    def _take_shares(self, time: ir.Value) -> None:
        """The input's share of each gate."""
        body, frame, b = self.body, self.frame, self.body.builder
        with body.loop(0, frame.gates) as gate:
            place = body.at(self.shares, b.mul(gate.index, body.const(self.flat)), self.vector)
            with b.if_else(b.icmp_signed("==", self.step, body.const(0))) as (rows, planes):
                with rows:
                    self._read(frame.buffer(INPUT), place, time, gate.index)
                with planes:
                    self._copy(place, time, gate.index)

    def _copy(self, place: ir.Value, time: ir.Value, gate: ir.Value) -> None:
        """A gate's share of all units and sequences, which lies as it is wanted. Past the last unit, and past the last
        vector of sequences, that one is read again."""
        body, frame, b = self.body, self.frame, self.body.builder
        last_unit, last = b.sub(frame.hidden, body.const(1)), b.sub(frame.images, body.const(self.width))
        with body.loop(0, self.vectors) as vector:
            sequence = body.smaller(self._sequence(vector.index, 0), last)
            number = b.udiv(frame.offset(time, sequence), b.mul(frame.hidden, body.const(self.width)))
            plane = body.at(frame.buffer(INPUT), b.mul(number, self.step), F32)
            with body.loop(0, self.width) as unit:
                here = body.smaller(b.add(b.mul(self.block, body.const(self.width)), unit.index), last_unit)
                share = self._load(plane, b.add(b.mul(gate, frame.hidden), here))
                body.store(share, place, b.add(b.mul(unit.index, body.const(self.vectors)), vector.index))

    def _gates(self) -> None:
        body, b = self.body, self.body.builder
        with body.loop(0, self.flat) as turn:
            at = [b.add(turn.index, body.const(gate * self.flat)) for gate in range(GATES[self.kind])]
            products, shares = ([self._load(place, i) for i in at] for place in (self.sums, self.shares))
            if self.kind == "gru":
                new = gru(body, shares, products, self._load(self.planes.old, turn.index))
            else:
                new, cell = lstm(body, shares, products, self._load(self.planes.cell, turn.index))
                body.store(cell, self.planes.cell, turn.index)
            body.store(new, self.planes.state, turn.index)

    def _load(self, place: ir.Value, index: ir.Value) -> ir.Value:
        return self.body.builder.load(self.body.at(place, index, self.vector), typ=self.vector, align=4)

    def _bring(self, role: int, plane: ir.Value) -> None:
        """An initial state into its plane, zeros where there is none."""
        body, b = self.body, self.body.builder
        with b.if_else(self.frame.present(role)) as (given, absent):
            with given:
                self._read(self.frame.buffer(role), plane)
            with absent, body.loop(0, self.flat) as turn:
                body.store(body.zeros(), plane, turn.index)

    def _read(
        self, base: ir.Value, place: ir.Value, time: ir.Value | None = None, gate: ir.Value | None = None
    ) -> None:
        """The tile's units of all its sequences into [unit, vector]: states [sequences, hidden] at `base`, or a
        gate's share [time, sequences, gates, hidden]. Past the last sequence that one is read again."""
        body, frame, b = self.body, self.frame, self.body.builder
        with body.loop(0, self.vectors) as vector:
            rows = []
            for lane in range(self.width):
                sequence = self._sequence(vector.index, lane)
                sequence = body.smaller(sequence, b.sub(frame.images, body.const(1)))
                at = b.mul(sequence, frame.hidden)
                if time is not None:
                    at = b.add(b.mul(frame.offset(time, sequence), body.const(frame.gates)), b.mul(gate, frame.hidden))
                rows.append(frame.load(body.at(base, at, F32), self.block, self.units))
            for unit, column in enumerate(square(body, rows)):
                body.store(column, place, b.add(vector.index, body.const(unit * self.vectors)))

    def _write(self, role: int, plane: ir.Value, start: ir.Value) -> None:
        """A plane's units to [sequences, hidden], `start` floats on in the buffer of a role, if it has one."""
        body, frame, b = self.body, self.frame, self.body.builder
        with b.if_then(frame.present(role)), body.loop(0, self.vectors) as vector:
            index = [b.add(vector.index, body.const(unit * self.vectors)) for unit in range(self.width)]
            for lane, row in enumerate(square(body, [self._load(plane, i) for i in index])):
                sequence = self._sequence(vector.index, lane)
                with b.if_then(b.icmp_signed("<", sequence, frame.images)):
                    at = b.add(start, b.mul(sequence, frame.hidden))
                    frame.store(row, body.at(frame.buffer(role), at, F32), self.block, self.units)

    def _sequence(self, vector: ir.Value, lane: int) -> ir.Value:
        b = self.body.builder
        within = b.add(b.mul(vector, self.body.const(self.width)), self.body.const(lane))
        return b.add(self.first, within)
