"""GRU and LSTM layers, all time steps in one stage: a tile is one sequence of the batch.

The input's share of the gates is a Linear of its own that runs before, over all steps at once. Here a step
multiplies the recurrence matrix with the last hidden state, gate by gate for one vector of hidden units, and
applies the gates to it. A sparse matrix is in SELL-C slices, a dense one in slices of whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I16, I32, I64, Body, Module
from sparsify.engine.memory import copied
from sparsify.engine.program import Operation, Recurrent
from sparsify.engine.sell import COLUMNS, in_slices
from sparsify.engine.stage import Context, Stage
from sparsify.engine.vector_math import sigmoid, tanh

_SPARSE_RATE, _DENSE_RATE = 9e9, 25e9  # bytes of weights a second and thread
_GATES = {"gru": 3, "lstm": 4}
_, _HIDDEN, _CELL, _SEQUENCE, _LAST_HIDDEN, _LAST_CELL, _SCRATCH = range(7)  # roles of buffers
_ABSENT = -1  # number of the buffer of a role that nothing plays


def propose(operation: Operation, context: Context) -> Stage | None:
    """A Recurrent whose input already holds the gates' share of it, in C order."""
    if not isinstance(operation, Recurrent) or operation.weight is not None:
        return None
    if operation.kind == "gru" and not operation.linear_before_reset:
        return None
    reads = (operation.input, *(name for name in operation.initial if name))
    writes = tuple(name for name in operation.outputs if name)
    steps, images, _ = context.values[operation.input].shape
    hidden = operation.recurrence.shape[1]
    if 0 in (steps, images, hidden) or hidden > COLUMNS:
        return None
    width = context.target.width
    packed = _packed(operation, width)
    numbers = [steps, images, hidden, -(-hidden // width), int(operation.reverse), *_roles(operation)]
    nonzeros = int(np.count_nonzero(operation.recurrence))
    bytes_read = sum(array.nbytes for array in packed)
    rate = _SPARSE_RATE if len(packed) > 1 else _DENSE_RATE
    return Stage(
        kernel="recurrent",
        function=f"sparsify_{operation.kind}" + ("" if len(packed) > 1 else "_dense"),
        reads=reads,
        writes=writes,
        tiles=images,
        constants=tuple(copied(a) for a in (np.array(numbers, np.int64), _bias(operation, width), *packed)),
        scratch=4 * images * (steps * hidden + 2 * width * -(-hidden // width)),
        flops=2.0 * nonzeros * steps * images,
        density=nonzeros / operation.recurrence.size,
        seconds=bytes_read * steps * images / rate / min(images, context.threads),
        why=f"{steps} steps of {images} sequences, " + ("SELL" if len(packed) > 1 else "dense columns"),
    )


def _roles(operation: Recurrent) -> list[int]:
    """The number of the buffer that plays each role; reads come first, then writes, then scratch memory."""
    initial = (*operation.initial, None)[:2]
    outputs = (*operation.outputs, None, None)[:3]
    names = [operation.input, *initial, *outputs]
    numbers, count = [], 0
    for name in names:
        numbers.append(count if name else _ABSENT)
        count += bool(name)
    return [*numbers, count]


def _padded(operation: Recurrent, width: int) -> np.ndarray:
    """The recurrence matrix, each gate filled up to whole vectors of rows: [gates, whole, hidden]."""
    gates, hidden = _GATES[operation.kind], operation.recurrence.shape[1]
    whole = -(-hidden // width) * width
    padded = np.zeros((gates, whole, hidden), np.float32)
    padded[:, :hidden] = operation.recurrence.reshape(gates, hidden, hidden)
    return padded


def _packed(operation: Recurrent, width: int) -> tuple[np.ndarray, ...]:
    """(first, value, column) of the slices, or one array [slices, hidden, width] where that reads faster."""
    padded = _padded(operation, width)
    hidden = padded.shape[2]
    flat = padded.reshape(-1, hidden)
    found = in_slices(flat, width, sort=False)
    if found.value.size * 6 / _SPARSE_RATE < flat.nbytes / _DENSE_RATE:
        return found.first, found.value, found.column
    return (np.ascontiguousarray(flat.reshape(-1, width, hidden).transpose(0, 2, 1)),)


def _bias(operation: Recurrent, width: int) -> np.ndarray:
    """The recurrence's bias, padded like the matrix."""
    gates, hidden = _GATES[operation.kind], operation.recurrence.shape[1]
    padded = np.zeros((gates, -(-hidden // width) * width), np.float32)
    padded[:, :hidden] = operation.bias[1].reshape(gates, hidden)
    return padded


def emit(module: Module) -> None:
    """void sparsify_{gru,lstm}[_dense](buffers, constants, tile)."""
    for kind in _GATES:
        for dense in (False, True):
            _emit(module, kind, dense)


@dataclass
class _Place:
    """Where a state of one image lies; `present` is false where nothing plays that role, None where it is sure."""

    start: ir.Value
    present: ir.Value | None


@dataclass
class _Frame:
    """What the steps of one function share."""

    body: Body
    gates: int
    dense: bool
    constants: ir.Value
    hidden: ir.Value
    blocks: ir.Value

    def lanes(self, block: ir.Value) -> ir.Value:
        """Which lanes of a block of hidden units there are."""
        b, width = self.body.builder, self.body.module.width
        rest = b.trunc(b.sub(self.hidden, b.mul(block, self.body.const(width))), I32)
        numbers = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        return b.icmp_signed("<", numbers, self.body.splat(rest))

    def load(self, base: ir.Value, block: ir.Value, mask: ir.Value) -> ir.Value:
        """A block of hidden units; zero beyond the last."""
        body, kind = self.body, self.body.module.vector
        place = body.at(base, body.builder.mul(block, body.const(kind.count)), F32)
        name = f"llvm.masked.load.v{kind.count}f32.p0"
        function = body.declared(name, kind, [ir.PointerType(), I32, mask.type, kind])
        return body.builder.call(function, [place, ir.Constant(I32, 4), mask, body.zeros()])

    def store(self, value: ir.Value, base: ir.Value, block: ir.Value, mask: ir.Value) -> None:
        """Store a block of hidden units."""
        body = self.body
        place = body.at(base, body.builder.mul(block, body.const(body.module.width)), F32)
        body.masked_store(value, place, mask)

    def copy(self, source: _Place, target: _Place | ir.Value) -> None:
        """Copy one image's state; zeros for an absent source, nothing to an absent target."""
        target = target if isinstance(target, _Place) else _Place(target, None)
        with self.body.loop(0, self.blocks) as block:
            mask = self.lanes(block.index)
            value = self.load(source.start, block.index, self._only(mask, source.present))
            self.store(value, target.start, block.index, self._only(mask, target.present))

    def _only(self, mask: ir.Value, present: ir.Value | None) -> ir.Value:
        return mask if present is None else self.body.builder.and_(mask, self.body.splat(present))

    def product(self, gate: int, block: ir.Value, state: ir.Value) -> ir.Value:
        """One gate's rows of a block times the hidden state, on top of the bias."""
        body, kind = self.body, self.body.module.vector
        b = body.builder
        piece = b.add(b.mul(body.const(gate), self.blocks), block)
        bias = b.load(body.at(body.pointer(self.constants, 1), piece, kind), typ=kind, align=4)
        if self.dense:
            return self._dense(piece, state, bias)
        first, values, columns = (body.pointer(self.constants, i) for i in (2, 3, 4))
        start = body.load(first, piece, I64, align=8)
        stop = body.load(first, b.add(piece, body.const(1)), I64, align=8)
        narrow, wide = ir.VectorType(I16, kind.count), ir.VectorType(I32, kind.count)
        with body.loop(start, stop, 1, [bias]) as step:
            weight = b.load(body.at(values, step.index, kind), typ=kind, align=4)
            column = b.load(body.at(columns, step.index, narrow), typ=narrow, align=2)
            found = body.gather(state, b.zext(column, wide))
            step.following = [body.fma(weight, found, step.state[0])]
        return step.state[0]

    def _dense(self, piece: ir.Value, state: ir.Value, bias: ir.Value) -> ir.Value:
        body, kind = self.body, self.body.module.vector
        b = body.builder
        columns = body.at(body.pointer(self.constants, 2), b.mul(piece, self.hidden), kind)
        with body.loop(0, self.hidden, 1, [bias]) as step:
            weight = b.load(body.at(columns, step.index, kind), typ=kind, align=4)
            number = body.splat(body.load(state, step.index, F32))
            step.following = [body.fma(weight, number, step.state[0])]
        return step.state[0]


def _emit(module: Module, kind: str, dense: bool) -> None:
    body = Body(module, f"sparsify_{kind}" + ("_dense" if dense else ""))
    b = body.builder
    buffers, constants, image = body.arguments
    numbers = body.numbers(body.pointer(constants, 0), 5 + _SCRATCH + 1)
    steps, images, hidden, blocks, reverse = numbers[:5]
    roles = numbers[5:]
    frame = _Frame(body, _GATES[kind], dense, constants, hidden, blocks)
    row, across = b.mul(image, hidden), b.mul(images, hidden)
    # scratch memory: all sequences, where nobody wants them; then cell and first hidden state of each image
    scratch = body.pointer(buffers, roles[_SCRATCH])
    whole = b.mul(blocks, body.const(module.width))
    cell = body.at(scratch, b.add(b.mul(steps, across), b.mul(image, b.mul(whole, body.const(2)))), F32)
    first = body.at(cell, whole, F32)
    places = [_place(frame, buffers, role, row) for role in roles[:_SCRATCH]]
    frame.copy(places[_HIDDEN], first)
    frame.copy(places[_CELL], cell)
    wanted = b.icmp_signed(">=", roles[_SEQUENCE], body.const(0))
    sequence = b.select(wanted, body.pointer(buffers, _valid(body, roles[_SEQUENCE])), scratch)
    with body.loop(0, steps, 1, [first]) as turn:
        backwards = b.sub(b.sub(steps, body.const(1)), turn.index)
        time = b.select(b.icmp_signed("!=", reverse, body.const(0)), backwards, turn.index)
        here = b.add(b.mul(time, across), row)
        x = body.at(body.pointer(buffers, 0), b.mul(here, body.const(frame.gates)), F32)
        output = body.at(sequence, here, F32)
        step = _gru_step if kind == "gru" else _lstm_step
        with body.loop(0, blocks) as block:
            step(frame, block.index, x, turn.state[0], output, cell)
        turn.following = [output]
    frame.copy(_Place(turn.state[0], None), places[_LAST_HIDDEN])
    frame.copy(_Place(cell, None), places[_LAST_CELL])
    body.done()


def _valid(body: Body, number: ir.Value) -> ir.Value:
    """The number of a buffer, 0 for one that is absent."""
    b = body.builder
    return b.select(b.icmp_signed(">=", number, body.const(0)), number, body.const(0))


def _place(frame: _Frame, buffers: ir.Value, role: ir.Value, row: ir.Value) -> _Place:
    body = frame.body
    start = body.at(body.pointer(buffers, _valid(body, role)), row, F32)
    return _Place(start, body.builder.icmp_signed(">=", role, body.const(0)))


def _gru_step(
    frame: _Frame, block: ir.Value, x: ir.Value, state: ir.Value, output: ir.Value, cell: ir.Value
) -> None:
    """h' = (1 - z) n + z h, with n = tanh(x_n + r (R_n h + b_n))."""
    body, b, mask = frame.body, frame.body.builder, frame.lanes(block)
    inputs = [frame.load(body.at(x, b.mul(frame.hidden, body.const(g)), F32), block, mask) for g in range(3)]
    update, reset, new = (frame.product(g, block, state) for g in range(3))
    update = sigmoid(body, b.fadd(inputs[0], update))
    reset = sigmoid(body, b.fadd(inputs[1], reset))
    new = tanh(body, body.fma(reset, new, inputs[2]))
    old = frame.load(state, block, mask)
    frame.store(body.fma(update, b.fsub(old, new), new), output, block, mask)


def _lstm_step(
    frame: _Frame, block: ir.Value, x: ir.Value, state: ir.Value, output: ir.Value, cell: ir.Value
) -> None:
    """c' = f c + i tanh(g) and h' = o tanh(c'), gates in ONNX's order i, o, f, g."""
    body, b, mask = frame.body, frame.body.builder, frame.lanes(block)
    sums = []
    for g in range(4):
        share = frame.load(body.at(x, b.mul(frame.hidden, body.const(g)), F32), block, mask)
        sums.append(b.fadd(share, frame.product(g, block, state)))
    enter, leave, keep = (sigmoid(body, value) for value in sums[:3])
    new = body.fma(keep, frame.load(cell, block, mask), b.fmul(enter, tanh(body, sums[3])))
    frame.store(new, cell, block, mask)
    frame.store(b.fmul(leave, tanh(body, new)), output, block, mask)
