"""What native GRU and LSTM layers share: buffers by role, states in masked vectors, the gates themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body
from sparsify.engine.program import Operation, Recurrent
from sparsify.engine.sell import COLUMNS
from sparsify.engine.stage import Context
from sparsify.engine.vector_math import sigmoid, tanh

RESET_FIRST = "gru_reset_first"  # a GRU whose reset gate works on the state, not on the state's product
GATES = {"gru": 3, RESET_FIRST: 3, "lstm": 4}
PHASES = {"gru": 1, RESET_FIRST: 2, "lstm": 1}  # that a step in time takes, each needing all of the one before
INPUT, HIDDEN, CELL, SEQUENCE, LAST_HIDDEN, LAST_CELL, SCRATCH = range(7)  # roles of buffers
ABSENT = -1  # number of the buffer of a role that nothing plays
NUMBERS = 6 + SCRATCH + 1  # of `numbers`


def native(operation: Operation, context: Context) -> tuple[Recurrent, tuple[int, int, int]] | None:
    """The operation, and its steps, sequences and hidden units, where native stages can do it.

    Its input then holds the gates' share, nothing is empty, and an index of 16 bits reaches every column.
    """
    if not isinstance(operation, Recurrent) or operation.weight is not None:
        return None
    steps, images, _ = context.values[operation.input].shape
    sizes = steps, images, operation.recurrence.shape[1]
    return (operation, sizes) if 0 not in sizes and sizes[2] <= COLUMNS else None


def kind_of(operation: Recurrent) -> str:
    """Which of `GATES` an operation is."""
    return RESET_FIRST if operation.kind == "gru" and not operation.linear_before_reset else operation.kind


def numbers(operation: Recurrent, steps: int, images: int, width: int, parts: int) -> list[int]:
    """Steps, images, hidden units, blocks of them, direction, tiles an image; then the buffer of each role.

    Buffers are numbered as in `reads`, then `writes`, then scratch memory.
    """
    hidden = operation.recurrence.shape[1]
    initial = (*operation.initial, None)[:2]
    outputs = (*operation.outputs, None, None)[:3]
    roles, count = [], 0
    for name in (operation.input, *initial, *outputs):
        roles.append(count if name else ABSENT)
        count += bool(name)
    return [steps, images, hidden, -(-hidden // width), int(operation.reverse), parts, *roles, count]


@dataclass
class Place:
    """Where one image's state lies; `present` is false where nothing plays its role, None if it is sure."""

    start: ir.Value
    present: ir.Value | None = None


class Frame:
    """The numbers of one native function, and access to states by blocks of hidden units."""

    def __init__(self, body: Body, kind: str, buffers: ir.Value, parameters: ir.Value) -> None:
        found = body.numbers(parameters, NUMBERS)
        self.body, self.gates, self.buffers = body, GATES[kind], buffers
        self.steps, self.images, self.hidden, self.blocks, self.reverse, self.parts = found[:6]
        self.roles = found[6:]
        b = body.builder
        self.whole = b.mul(self.blocks, body.const(body.module.width))  # hidden units in whole vectors
        self.across = b.mul(self.images, self.hidden)  # floats from one step of a sequence to the next
        self.scratch = self.buffer(SCRATCH)
        number = b.add(self.roles[SCRATCH], body.const(1))
        self.step = body.load(buffers, number, I64, align=8)

    def buffer(self, role: int) -> ir.Value:
        """Address of a role's buffer; of some buffer where the role is absent."""
        b, number = self.body.builder, self.roles[role]
        return self.body.pointer(self.buffers, b.select(self.present(role), number, self.body.const(0)))

    def present(self, role: int) -> ir.Value:
        """Whether a role has a buffer."""
        return self.body.builder.icmp_signed(">=", self.roles[role], self.body.const(0))

    def place(self, role: int, image: ir.Value) -> Place:
        """One image's state in the buffer of a role."""
        start = self.body.at(self.buffer(role), self.body.builder.mul(image, self.hidden), F32)
        return Place(start, self.present(role))

    def hidden_state(self, step: ir.Value, image: ir.Value) -> ir.Value:
        """Where an image's hidden state after a step lies in [steps, images, hidden].

        That is the first of the scratch memory where nobody wants the whole sequence.
        """
        b = self.body.builder
        base = b.select(self.present(SEQUENCE), self.buffer(SEQUENCE), self.scratch)
        return self.body.at(base, self.offset(step, image), F32)

    def offset(self, step: ir.Value, image: ir.Value) -> ir.Value:
        """Hidden units of all steps and images before this one, in the order of time."""
        b = self.body.builder
        backwards = b.sub(b.sub(self.steps, self.body.const(1)), step)
        time = b.select(b.icmp_signed("!=", self.reverse, self.body.const(0)), backwards, step)
        return b.add(b.mul(time, self.across), b.mul(image, self.hidden))

    def lanes(self, block: ir.Value) -> ir.Value:
        """Which lanes of a block of hidden units there are."""
        b, width = self.body.builder, self.body.module.width
        rest = b.trunc(b.sub(self.hidden, b.mul(block, self.body.const(width))), I32)
        lanes = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        return b.icmp_signed("<", lanes, self.body.splat(rest))

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

    def copy(self, source: Place, target: Place, start: ir.Value, stop: ir.Value) -> None:
        """Copy blocks of one image's state; zeros from an absent source, nothing to an absent target."""
        with self.body.loop(start, stop) as block:
            mask = self.lanes(block.index)
            value = self.load(source.start, block.index, self._only(mask, source.present))
            self.store(value, target.start, block.index, self._only(mask, target.present))

    def _only(self, mask: ir.Value, present: ir.Value | None) -> ir.Value:
        return mask if present is None else self.body.builder.and_(mask, self.body.splat(present))


@dataclass
class Step:
    """Where one step of one image finds and leaves things."""

    share: ir.Value  # the input's share of the gates, [gates, hidden]
    state: ir.Value  # the last hidden state, [hidden]
    output: ir.Value  # the next one
    cell: ir.Value  # of an LSTM, old and new; between phases the update gate
    reset: ir.Value  # between phases: the last hidden state times the reset gate


def apply(frame: Frame, kind: str, step: Step, block: ir.Value, products: list[ir.Value]) -> ir.Value:
    """The next hidden state of a block of hidden units, stored and returned.

    products: for each gate, the recurrence's product with the last hidden state plus its bias.
    """
    mask = frame.lanes(block)
    shares = [_share(frame, step, gate, block, mask) for gate in range(frame.gates)]
    function = _gru if kind == "gru" else _lstm
    new = function(frame, step, block, mask, shares, products)
    frame.store(new, step.output, block, mask)
    return new


def open_gates(frame: Frame, step: Step, block: ir.Value, products: list[ir.Value]) -> None:
    """The first phase of a GRU that resets first: its update gate, and the state times its reset gate."""
    body, mask = frame.body, frame.lanes(block)
    update, reset = (
        sigmoid(body, body.builder.fadd(_share(frame, step, gate, block, mask), product))
        for gate, product in enumerate(products)
    )
    frame.store(update, step.cell, block, mask)
    frame.store(body.builder.fmul(reset, frame.load(step.state, block, mask)), step.reset, block, mask)


def close_gates(frame: Frame, step: Step, block: ir.Value, product: ir.Value) -> None:
    """The second phase: (1 - z) n + z h, with n = tanh(x_n + R_n (r h) + b_n)."""
    body, b, mask = frame.body, frame.body.builder, frame.lanes(block)
    new = tanh(body, b.fadd(_share(frame, step, 2, block, mask), product))
    update, state = frame.load(step.cell, block, mask), frame.load(step.state, block, mask)
    frame.store(body.fma(update, b.fsub(state, new), new), step.output, block, mask)


def _share(frame: Frame, step: Step, gate: int, block: ir.Value, mask: ir.Value) -> ir.Value:
    """The input's share of one gate of a block."""
    start = frame.body.builder.mul(frame.hidden, frame.body.const(gate))
    return frame.load(frame.body.at(step.share, start, F32), block, mask)


def _gru(
    frame: Frame,
    step: Step,
    block: ir.Value,
    mask: ir.Value,
    shares: list[ir.Value],
    products: list[ir.Value],
) -> ir.Value:
    return gru(frame.body, shares, products, frame.load(step.state, block, mask))


def gru(body: Body, shares: list[ir.Value], products: list[ir.Value], state: ir.Value) -> ir.Value:
    """(1 - z) n + z h, with n = tanh(x_n + r (R_n h + b_n)); gates in ONNX's order z, r, h."""
    b = body.builder
    update, reset = (sigmoid(body, b.fadd(shares[g], products[g])) for g in range(2))
    new = tanh(body, body.fma(reset, products[2], shares[2]))
    return body.fma(update, b.fsub(state, new), new)


def _lstm(
    frame: Frame,
    step: Step,
    block: ir.Value,
    mask: ir.Value,
    shares: list[ir.Value],
    products: list[ir.Value],
) -> ir.Value:
    hidden, cell = lstm(frame.body, shares, products, frame.load(step.cell, block, mask))
    frame.store(cell, step.cell, block, mask)
    return hidden


def lstm(body: Body, shares: list[ir.Value], products: list[ir.Value], cell: ir.Value) -> tuple[ir.Value, ir.Value]:
    """o tanh(c') and c' = f c + i tanh(g); gates in ONNX's order i, o, f, g."""
    b = body.builder
    sums = [b.fadd(share, product) for share, product in zip(shares, products, strict=True)]
    enter, leave, keep = (sigmoid(body, total) for total in sums[:3])
    cell = body.fma(keep, cell, b.fmul(enter, tanh(body, sums[3])))
    return b.fmul(leave, tanh(body, cell)), cell


def padded_rows(operation: Recurrent, width: int) -> np.ndarray:
    """The recurrence matrix, each gate filled up to whole vectors of rows: [gates, whole, hidden]."""
    gates, hidden = GATES[kind_of(operation)], operation.recurrence.shape[1]
    padded = np.zeros((gates, -(-hidden // width) * width, hidden), np.float32)
    padded[:, :hidden] = operation.recurrence.reshape(gates, hidden, hidden)
    return padded
