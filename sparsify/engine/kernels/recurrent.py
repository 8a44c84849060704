"""GRU and LSTM layers, a step of the stage for each in time: a tile is some hidden units of a few sequences.

The input's share of the gates is a Linear of its own that runs before, over all steps at once. Here a step
multiplies the recurrence matrix with the last hidden state, one vector of hidden units at a time, and applies
the gates to it. The matrix is read in one of three forms: dense columns; SELL-C slices, whose operands are
gathered; or, where the CPU can permute two registers, `segments`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from sparsify.engine import nonzeros, segments, sell
from sparsify.engine.gates import (
    CELL,
    GATES,
    HIDDEN,
    INPUT,
    LAST_CELL,
    LAST_HIDDEN,
    PHASES,
    Frame,
    Place,
    Step,
    apply,
    close_gates,
    kind_of,
    native,
    numbers,
    open_gates,
    padded_rows,
)
from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.program import Operation, Recurrent
from sparsify.engine.stage import Context, Stage

_RATES = {"dense": 60e9, "gathered": 16e9, "permuted": 60e9}  # bytes of weights a second and thread
_TILES = 2  # a thread and step, where the batch is small
_TOGETHER = {"dense": 4, "gathered": 2, "permuted": 2}  # sequences that share what is read of the matrix


def propose(operation: Operation, context: Context) -> Stage | None:
    """A Recurrent whose input already holds the gates' share of it, in C order."""
    held = native(operation, context)
    if held is None:
        return None
    operation, (steps, images, hidden) = held
    kind, width = kind_of(operation), context.target.width
    form, packed = _packed(operation, context)
    found = nonzeros.count(operation.recurrence)
    together = 1 if images == 1 else _TOGETHER[form]
    groups = -(-images // together)
    parts = max(1, min(-(-hidden // width), _TILES * context.threads // groups))
    constants = (
        np.array(numbers(operation, steps, images, width, parts), np.int64),
        _bias(operation, width),
        np.zeros(hidden, np.float32),
        *packed,
    )
    return Stage(
        kernel="recurrent",
        function=_name(kind, form, together),
        reads=(operation.input, *(name for name in operation.initial if name)),
        writes=tuple(name for name in operation.outputs if name),
        tiles=groups * parts,
        steps=steps * PHASES[kind],
        constants=constants,
        scratch=4 * images * (steps * hidden + 2 * width * -(-hidden // width)),
        flops=2.0 * found * steps * images,
        density=found / operation.recurrence.size,
        seconds=_seconds(form, packed) * steps * (groups if form == "dense" else images) / context.threads,
        why=f"{steps} steps of {images} sequences, {form}",
    )


def _packed(operation: Recurrent, context: Context) -> tuple[str, tuple[np.ndarray, ...]]:
    """The form in which the recurrence matrix is read fastest, and its arrays."""
    width = context.target.width
    padded = padded_rows(operation, width)
    flat = padded.reshape(-1, padded.shape[2])
    columns = flat.reshape(-1, width, flat.shape[1]).transpose(0, 2, 1)
    forms: dict[str, tuple[np.ndarray, ...]] = {"dense": (np.ascontiguousarray(columns),)}
    if context.target.level == "avx512":
        parts = [padded] if len(_sets(kind_of(operation))) == 1 else [padded[:2], padded[2:]]
        forms["permuted"] = tuple(
            array
            for part in parts
            for array in segments.in_segments(part.shape, nonzeros.find(part.reshape(-1, part.shape[2])), width).arrays
        )
    else:
        slices = sell.in_slices(len(flat), nonzeros.find(flat), width, sort=False)
        forms["gathered"] = (slices.first, slices.value, slices.column)
    return min(forms.items(), key=lambda item: _seconds(*item))


def _sets(kind: str) -> list[range]:
    """The gates whose products are made together, one set for each phase."""
    return [range(GATES[kind])] if PHASES[kind] == 1 else [range(2), range(2, 3)]


def _seconds(form: str, packed: tuple[np.ndarray, ...]) -> float:
    """Of one step of one image on one thread."""
    return sum(array.nbytes for array in packed) / _RATES[form]


def _bias(operation: Recurrent, width: int) -> np.ndarray:
    """The recurrence's bias, padded like the matrix."""
    gates, hidden = GATES[kind_of(operation)], operation.recurrence.shape[1]
    padded = np.zeros((gates, -(-hidden // width) * width), np.float32)
    padded[:, :hidden] = operation.bias[1].reshape(gates, hidden)
    return padded


def _name(kind: str, form: str, together: int) -> str:
    return f"sparsify_{kind}_{form}_{together}"


def emit(module: Module) -> None:
    """void sparsify_<kind>_{dense,gathered,permuted}_<sequences>(buffers, constants, tile)."""
    forms = {"dense": _dense_products, "gathered": _gathered_products}
    if module.target.level == "avx512":
        forms["permuted"] = _permuted_products
    for kind in GATES:
        for form, products in forms.items():
            for together in (1, _TOGETHER[form]):
                _emit(module, kind, form, products, together)


Products = Callable[[Frame, ir.Value, list[ir.Value], ir.Value, range], list[ir.Value]]
"""For each state some gates' products with it plus bias, for a block: (frame, constants, states, block, gates)."""


def _emit(module: Module, kind: str, form: str, products: Products, together: int) -> None:
    """One step of some blocks of some images' hidden units."""
    body = Body(module, _name(kind, form, together))
    b = body.builder
    buffers, constants, tile = body.arguments
    frame = Frame(body, kind, buffers, body.pointer(constants, 0))
    number, phases = frame.step, body.const(PHASES[kind])
    frame.step, phase = b.udiv(number, phases), b.urem(number, phases)
    group, part = b.udiv(tile, frame.parts), b.urem(tile, frame.parts)
    start, stop = (b.udiv(b.mul(frame.blocks, n), frame.parts) for n in (part, b.add(part, body.const(1))))
    # Past the last image the last one is read again, but not written.
    numbers = [b.add(b.mul(group, body.const(together)), body.const(i)) for i in range(together)]
    images = [body.smaller(n, b.sub(frame.images, body.const(1))) for n in numbers]
    present = [b.icmp_signed("<", n, frame.images) for n in numbers]
    steps = [_step(frame, constants, image) for image in images]
    with b.if_then(b.icmp_signed("==", number, body.const(0))):
        for image, step in zip(images, steps, strict=True):
            frame.copy(frame.place(CELL, image), Place(step.cell), start, stop)
    with body.loop(start, stop) as block:
        if PHASES[kind] == 1:
            sums = products(frame, constants, [step.state for step in steps], block.index, range(frame.gates))
            for i, step in enumerate(steps):
                with b.if_then(present[i]):
                    apply(frame, kind, step, block.index, sums[i * frame.gates : (i + 1) * frame.gates])
        else:
            with b.if_else(b.icmp_signed("==", phase, body.const(0))) as (opens, closes):
                with opens:
                    sums = products(frame, constants, [step.state for step in steps], block.index, range(2))
                    for i, step in enumerate(steps):
                        with b.if_then(present[i]):
                            open_gates(frame, step, block.index, sums[2 * i : 2 * i + 2])
                with closes:
                    sums = products(frame, constants, [step.reset for step in steps], block.index, range(2, 3))
                    for i, step in enumerate(steps):
                        with b.if_then(present[i]):
                            close_gates(frame, step, block.index, sums[i])
    with b.if_then(b.icmp_signed("==", number, b.sub(b.mul(frame.steps, phases), body.const(1)))):
        for image, step in zip(images, steps, strict=True):
            frame.copy(Place(step.output), frame.place(LAST_HIDDEN, image), start, stop)
            frame.copy(Place(step.cell), frame.place(LAST_CELL, image), start, stop)
    body.done()


def _step(frame: Frame, constants: ir.Value, image: ir.Value) -> Step:
    """Where an image's step finds and leaves things."""
    body, b = frame.body, frame.body.builder
    # scratch memory: all sequences, where nobody wants them; then for each image its cell state, and one more state
    cell = b.add(b.mul(frame.steps, frame.across), b.mul(image, frame.whole))
    return Step(
        body.at(frame.buffer(INPUT), b.mul(frame.offset(frame.step, image), body.const(frame.gates)), F32),
        _state(frame, constants, image, b.icmp_signed("==", frame.step, body.const(0))),
        frame.hidden_state(frame.step, image),
        body.at(frame.scratch, cell, F32),
        body.at(frame.scratch, b.add(cell, b.mul(frame.images, frame.whole)), F32),
    )


def _state(frame: Frame, constants: ir.Value, image: ir.Value, is_first: ir.Value) -> ir.Value:
    """The last hidden state: the initial one, or zeros, at the first step."""
    body, b = frame.body, frame.body.builder
    before = frame.hidden_state(b.sub(frame.step, body.const(1)), image)
    zeros = body.pointer(constants, 2)
    initial = b.select(frame.present(HIDDEN), frame.place(HIDDEN, image).start, zeros)
    return b.select(is_first, initial, before)


def _start(frame: Frame, constants: ir.Value, block: ir.Value, gates: range) -> tuple[list[ir.Value], list[ir.Value]]:
    """Numbers of a block's slices, gate by gate, and their biases."""
    body, b, kind = frame.body, frame.body.builder, frame.body.module.vector
    pieces = [b.add(b.mul(body.const(gate), frame.blocks), block) for gate in gates]
    bias = body.pointer(constants, 1)
    return pieces, [b.load(body.at(bias, piece, kind), typ=kind, align=4) for piece in pieces]


def _gathered_products(
    frame: Frame, constants: ir.Value, states: list[ir.Value], block: ir.Value, gates: range
) -> list[ir.Value]:
    arrays = [frame.body.pointer(constants, i) for i in (3, 4, 5)]
    pieces, biases = _start(frame, constants, block, gates)
    return [
        sell.add_products(frame.body, arrays, state, piece, bias)
        for state in states
        for piece, bias in zip(pieces, biases, strict=True)
    ]


def _dense_products(
    frame: Frame, constants: ir.Value, states: list[ir.Value], block: ir.Value, gates: range
) -> list[ir.Value]:
    """All gates in one loop, whose sums do not wait for each other."""
    body, b, kind = frame.body, frame.body.builder, frame.body.module.vector
    pieces, biases = _start(frame, constants, block, gates)
    weights = body.pointer(constants, 3)
    columns = [body.at(weights, b.mul(piece, frame.hidden), kind) for piece in pieces]
    with body.loop(0, frame.hidden, 1, biases * len(states)) as step:
        vectors = [b.load(body.at(column, step.index, kind), typ=kind, align=4) for column in columns]
        numbers = [body.splat(body.load(state, step.index, F32)) for state in states]
        factors = [(vector, number) for number in numbers for vector in vectors]
        step.following = [body.fma(*pair, total) for pair, total in zip(factors, step.state, strict=True)]
    return step.state


def _permuted_products(
    frame: Frame, constants: ir.Value, states: list[ir.Value], block: ir.Value, gates: range
) -> list[ir.Value]:
    first = 3 if gates.start == 0 else 9  # the gates of a later phase lie by themselves
    arrays = [frame.body.pointer(constants, first + i) for i in range(6)]
    biases = _start(frame, constants, block, gates)[1]
    pieces = _start(frame, constants, block, range(len(gates)))[0]
    return segments.add_products(frame.body, arrays, states, frame.hidden, pieces, biases * len(states))
