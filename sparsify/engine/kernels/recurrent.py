"""GRU and LSTM layers, a step of the stage for each in time: a tile is some hidden units of one sequence.

The input's share of the gates is a Linear of its own that runs before, over all steps at once. Here a step
multiplies the recurrence matrix with the last hidden state, one vector of hidden units at a time, and applies
the gates to it. A sparse matrix is in SELL-C slices, a dense one in slices of whole columns.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from sparsify.engine.gates import (
    CELL,
    GATES,
    HIDDEN,
    INPUT,
    LAST_CELL,
    LAST_HIDDEN,
    Frame,
    Place,
    Step,
    apply,
    is_native,
    numbers,
    padded_rows,
)
from sparsify.engine.ir import F32, I16, I32, I64, Body, Module
from sparsify.engine.memory import copied
from sparsify.engine.program import Operation, Recurrent
from sparsify.engine.sell import COLUMNS, in_slices
from sparsify.engine.stage import Context, Stage

_SPARSE_RATE, _DENSE_RATE = 16e9, 60e9  # bytes of weights a second and thread
_TILES = 2  # a thread and step, where the batch is small


def propose(operation: Operation, context: Context) -> Stage | None:
    """A Recurrent whose input already holds the gates' share of it, in C order."""
    if not is_native(operation):
        return None
    assert isinstance(operation, Recurrent)
    steps, images, _ = context.values[operation.input].shape
    hidden, width = operation.recurrence.shape[1], context.target.width
    if 0 in (steps, images, hidden) or hidden > COLUMNS:
        return None
    packed = _packed(operation, width)
    kind = "SELL" if len(packed) > 1 else "dense columns"
    nonzeros = int(np.count_nonzero(operation.recurrence))
    rate = _SPARSE_RATE if len(packed) > 1 else _DENSE_RATE
    parts = max(1, min(-(-hidden // width), _TILES * context.threads // images))
    constants = (
        np.array(numbers(operation, steps, images, width, parts), np.int64),
        _bias(operation, width),
        np.zeros(hidden, np.float32),
        *packed,
    )
    return Stage(
        kernel="recurrent",
        function=f"sparsify_{operation.kind}" + ("" if len(packed) > 1 else "_dense"),
        reads=(operation.input, *(name for name in operation.initial if name)),
        writes=tuple(name for name in operation.outputs if name),
        tiles=images * parts,
        steps=steps,
        constants=tuple(copied(array) for array in constants),
        scratch=4 * images * (steps * hidden + width * -(-hidden // width)),
        flops=2.0 * nonzeros * steps * images,
        density=nonzeros / operation.recurrence.size,
        seconds=sum(array.nbytes for array in packed) * steps * images / rate / context.threads,
        why=f"{steps} steps of {images} sequences, {kind}",
    )


def _packed(operation: Recurrent, width: int) -> tuple[np.ndarray, ...]:
    """(first, value, column) of the slices, or one array [slices, hidden, width] where that reads faster."""
    padded = padded_rows(operation, width)
    flat = padded.reshape(-1, padded.shape[2])
    found = in_slices(flat, width, sort=False)
    if found.value.size * 6 / _SPARSE_RATE < flat.nbytes / _DENSE_RATE:
        return found.first, found.value, found.column
    return (np.ascontiguousarray(flat.reshape(-1, width, flat.shape[1]).transpose(0, 2, 1)),)


def _bias(operation: Recurrent, width: int) -> np.ndarray:
    """The recurrence's bias, padded like the matrix."""
    gates, hidden = GATES[operation.kind], operation.recurrence.shape[1]
    padded = np.zeros((gates, -(-hidden // width) * width), np.float32)
    padded[:, :hidden] = operation.bias[1].reshape(gates, hidden)
    return padded


def emit(module: Module) -> None:
    """void sparsify_{gru,lstm}[_dense](buffers, constants, tile)."""
    for kind in GATES:
        for dense in (False, True):
            _emit(module, kind, dense)


def _emit(module: Module, kind: str, dense: bool) -> None:
    """One step of some blocks of one image's hidden units."""
    body = Body(module, f"sparsify_{kind}" + ("_dense" if dense else ""))
    b = body.builder
    buffers, constants, tile = body.arguments
    frame = Frame(body, kind, buffers, body.pointer(constants, 0))
    image, part = b.udiv(tile, frame.parts), b.urem(tile, frame.parts)
    start, stop = (
        b.udiv(b.mul(frame.blocks, number), frame.parts) for number in (part, b.add(part, body.const(1)))
    )
    # scratch memory: all sequences, where nobody wants them; then the cell state of each image
    cell = b.add(b.mul(frame.steps, frame.across), b.mul(image, frame.whole))
    is_first = b.icmp_signed("==", frame.step, body.const(0))
    is_last = b.icmp_signed("==", frame.step, b.sub(frame.steps, body.const(1)))
    share = body.at(frame.buffer(INPUT), b.mul(frame.offset(frame.step, image), body.const(frame.gates)), F32)
    step = Step(
        share,
        _state(frame, constants, image, is_first),
        frame.hidden_state(frame.step, image),
        body.at(frame.scratch, cell, F32),
    )
    with b.if_then(is_first):
        frame.copy(frame.place(CELL, image), Place(step.cell), start, stop)
    with body.loop(start, stop) as block:
        make = _dense_products if dense else _sparse_products
        apply(frame, kind, step, block.index, make(frame, constants, step.state, block.index))
    with b.if_then(is_last):
        frame.copy(Place(step.output), frame.place(LAST_HIDDEN, image), start, stop)
        frame.copy(Place(step.cell), frame.place(LAST_CELL, image), start, stop)
    body.done()


def _state(frame: Frame, constants: ir.Value, image: ir.Value, is_first: ir.Value) -> ir.Value:
    """The last hidden state: the initial one, or zeros, at the first step."""
    body, b = frame.body, frame.body.builder
    before = frame.hidden_state(b.sub(frame.step, body.const(1)), image)
    zeros = body.pointer(constants, 2)
    initial = b.select(frame.present(HIDDEN), frame.place(HIDDEN, image).start, zeros)
    return b.select(is_first, initial, before)


def _start(frame: Frame, constants: ir.Value, block: ir.Value) -> tuple[list[ir.Value], list[ir.Value]]:
    """Numbers of a block's slices, gate by gate, and their biases."""
    body, b, kind = frame.body, frame.body.builder, frame.body.module.vector
    pieces = [b.add(b.mul(body.const(gate), frame.blocks), block) for gate in range(frame.gates)]
    bias = body.pointer(constants, 1)
    return pieces, [b.load(body.at(bias, piece, kind), typ=kind, align=4) for piece in pieces]


def _sparse_products(frame: Frame, constants: ir.Value, state: ir.Value, block: ir.Value) -> list[ir.Value]:
    body, b, kind = frame.body, frame.body.builder, frame.body.module.vector
    first, values, columns = (body.pointer(constants, i) for i in (3, 4, 5))
    narrow, wide = ir.VectorType(I16, kind.count), ir.VectorType(I32, kind.count)
    totals = []
    for piece, bias in zip(*_start(frame, constants, block), strict=True):
        start = body.load(first, piece, I64, align=8)
        stop = body.load(first, b.add(piece, body.const(1)), I64, align=8)
        with body.loop(start, stop, 1, [bias]) as step:
            weight = b.load(body.at(values, step.index, kind), typ=kind, align=4)
            column = b.load(body.at(columns, step.index, narrow), typ=narrow, align=2)
            found = body.gather(state, b.zext(column, wide))
            step.following = [body.fma(weight, found, step.state[0])]
        totals.append(step.state[0])
    return totals


def _dense_products(frame: Frame, constants: ir.Value, state: ir.Value, block: ir.Value) -> list[ir.Value]:
    """All gates in one loop, whose sums do not wait for each other."""
    body, b, kind = frame.body, frame.body.builder, frame.body.module.vector
    pieces, biases = _start(frame, constants, block)
    weights = body.pointer(constants, 3)
    columns = [body.at(weights, b.mul(piece, frame.hidden), kind) for piece in pieces]
    with body.loop(0, frame.hidden, 1, biases) as step:
        number = body.splat(body.load(state, step.index, F32))
        step.following = [
            body.fma(b.load(body.at(column, step.index, kind), typ=kind, align=4), number, total)
            for column, total in zip(columns, step.state, strict=True)
        ]
    return step.state
