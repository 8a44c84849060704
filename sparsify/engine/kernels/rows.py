"""Depthwise convolutions and maximum pools of 3 x 3 taps, down the rows of a plane.

Some vectors of a row are in work at a time. Each row of the input is loaded once and goes into all output rows
that it is part of, whose sums so far stay in registers. With a stride of 2 the columns are sorted into even and
odd in registers, so that the planes need not be split by phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, Body, Module
from sparsify.engine.program import Convolution, Epilogue, Operation, Pool
from sparsify.engine.sliding import is_by_rows
from sparsify.engine.stage import Context, Stage

_RATE = 3.5e9  # vector operations a second and thread
_BAND = 7  # rows that are worth the loading of those around them
_TAPS = 3
_NAMES = {
    (stride, largest): f"sparsify_rows_{'max' if largest else 'sum'}_{stride}"
    for stride in (1, 2)
    for largest in (False, True)
}


def propose(operation: Operation, context: Context) -> Stage | None:
    """What `is_by_rows` says."""
    if not is_by_rows(operation, context.layouts):
        return None
    assert isinstance(operation, Convolution | Pool)
    input, output = context.layouts[operation.input], context.layouts[operation.output]
    if input is None or output is None:
        return None
    channels, stride = output.channels, operation.stride[0]
    if isinstance(operation, Convolution):
        epilogue = operation.epilogue
        weights = np.concatenate([np.asarray(operation.weight).reshape(channels, -1), operation.bias[:, None]], axis=1)
    else:
        epilogue, weights = Epilogue(), np.zeros((channels, _TAPS**2 + 1), np.float32)
    starts = [int(layout.index()[0, 0, 0, 0]) for layout in (input, output)]
    top, left = operation.padding[:2]
    vectors = -(-output.width // context.target.width)
    # In bands where there are enough rows: the kernels before and after share positions among threads, too.
    bands = max(1, min(output.height // _BAND, context.threads * context.tuning.tiles_per_thread // 2))
    band = -(-output.height // bands)
    bands = -(-output.height // band)
    together = -(-channels * bands // (context.threads * context.tuning.tiles_per_thread))
    groups = -(-channels // together)
    numbers = [
        channels, together, groups, band, output.images, output.height, output.width,
        starts[0] - top * input.pitch - left, input.channel, input.plane, input.pitch,
        starts[1], output.channel, output.plane, output.pitch,
    ]  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    constants = (np.array(numbers, np.int64), weights.astype(np.float32), limits)
    operations = _TAPS**2 * channels * output.images * output.height
    return Stage(
        kernel="rows",
        function=_NAMES[stride, not isinstance(operation, Convolution)],
        reads=(operation.input,),
        writes=(operation.output,),
        tiles=groups * bands,
        constants=constants,
        layouts={operation.input: input, operation.output: output},
        flops=2.0 * operations * output.width,
        seconds=operations * vectors / _RATE / context.threads,
        why="each channel by itself, row by row",
    )


def emit(module: Module) -> None:
    """void sparsify_rows_<sum or max>_<stride>(buffers, constants, tile): some channels of a band of rows."""
    for (stride, largest), name in _NAMES.items():
        _Rows(Body(module, name), stride, largest).emit()


@dataclass(frozen=True, eq=False)
class _Unit:
    """A vector of output columns in work: weights, where it reads and writes, and which lanes it stores."""

    weights: Sequence[ir.Value]  # the last one the bias
    input: ir.Value
    output: ir.Value
    mask: ir.Value


class _Rows:
    """One function while it is written."""

    def __init__(self, body: Body, stride: int, largest: bool) -> None:
        self.body, self.stride, self.largest = body, stride, largest
        self.buffers, constants, self.tile = body.arguments
        parameters, self.weights, limits = (body.pointer(constants, i) for i in range(3))
        self.low, self.high = (body.splat(body.load(limits, i, F32)) for i in (0, 1))
        numbers = body.numbers(parameters, 15)
        self.channels, self.together, self.groups, self.band, self.images, self.height, self.width = numbers[:7]
        self.sides = (numbers[7:11], numbers[11:15])  # start, channel, plane and pitch of input and output

    def emit(self) -> None:
        """Two channels at a time where a row is one vector, else as many vectors as registers allow."""
        body, b, lanes = self.body, self.body.builder, self.body.module.width
        first = b.mul(b.urem(self.tile, self.groups), self.together)
        self.top = b.mul(b.udiv(self.tile, self.groups), self.band)
        self.bottom = body.smaller(self.height, b.add(self.top, self.band))
        last = body.smaller(self.channels, b.add(first, self.together))
        narrow = b.icmp_signed("<=", self.width, body.const(lanes))
        pairs = b.select(narrow, b.add(first, b.and_(b.sub(last, first), body.const(-2))), first)
        zero = body.const(0)
        with body.loop(0, self.images) as image:
            with body.loop(first, pairs, 2) as pair:
                self._go([self._unit(image.index, b.add(pair.index, body.const(i)), zero) for i in (0, 1)])
            with body.loop(pairs, last) as channel:
                done: ir.Value = zero
                for together in (4, 2, 1) if self.stride == 1 else (2, 1):
                    vectors = b.udiv(b.add(b.sub(self.width, done), body.const(lanes - 1)), body.const(lanes))
                    whole = b.and_(vectors, body.const(-together))
                    stop = b.add(done, b.mul(whole, body.const(lanes)))
                    with body.loop(done, stop, together * lanes) as turn:
                        columns = [b.add(turn.index, body.const(i * lanes)) for i in range(together)]
                        self._go([self._unit(image.index, channel.index, column) for column in columns])
                    done = stop
        body.done()

    def _unit(self, image: ir.Value, channel: ir.Value, column: ir.Value) -> _Unit:
        body, b = self.body, self.body.builder
        places = []
        for i, (start, by_channel, by_image, _) in enumerate(self.sides):
            place = b.add(start, b.add(b.mul(channel, by_channel), b.mul(image, by_image)))
            further = b.mul(column, body.const(self.stride)) if i == 0 else column
            places.append(body.at(body.pointer(self.buffers, i), b.add(place, further), F32))
        count = _TAPS**2 + 1
        mine = body.at(self.weights, b.mul(channel, body.const(count)), F32)
        weights = [] if self.largest else [body.splat(body.load(mine, i, F32)) for i in range(count)]
        return _Unit(weights, places[0], places[1], body.first_lanes(b.sub(self.width, column)))

    def _go(self, units: list[_Unit]) -> None:
        """All rows of some units. Carried from one output row to the next: for each unit the sums of the
        following outputs, whose first input rows are in already."""
        body, b, known = self.body, self.body.builder, _TAPS - self.stride
        begun: list[list[ir.Value]] = [[] for _ in units]
        for unit, sums in zip(units, begun, strict=True):
            for row in range(known):
                self._take(unit, sums, row, b.add(b.mul(self.top, body.const(self.stride)), body.const(row)))
        with body.loop(self.top, self.bottom, 1, [total for sums in begun for total in sums]) as turn:
            above = b.mul(turn.index, body.const(self.stride))
            following, left = [], turn.state
            for unit, sums in zip(units, begun, strict=True):
                mine, left = left[: len(sums)], left[len(sums) :]
                for row in range(known, _TAPS):
                    self._take(unit, mine, row, b.add(above, body.const(row)))
                self._store(unit, turn.index, mine[0])
                following += mine[1:]
            turn.following = following

    def _take(self, unit: _Unit, sums: list[ir.Value], place: int, row: ir.Value) -> None:
        """Bring an input row into all outputs that it is part of; `place` is where it lies in the first one's
        window."""
        body, columns = self.body, self._columns(unit, row)
        for number in range(place // self.stride + 1):
            tap = (place - number * self.stride) * _TAPS
            if number == len(sums):
                sums.append(columns[0] if self.largest else unit.weights[-1])
            for i, x in enumerate(columns):
                total = sums[number]
                sums[number] = body.maximum(x, total) if self.largest else body.fma(unit.weights[tap + i], x, total)

    def _columns(self, unit: _Unit, row: ir.Value) -> list[ir.Value]:
        """A row's vectors for the three taps."""
        body, b, module = self.body, self.body.builder, self.body.module
        start = b.mul(row, self.sides[0][3])

        def load(further: int) -> ir.Value:
            place = body.at(unit.input, b.add(start, body.const(further)), F32)
            return b.load(place, typ=module.vector, align=4)

        if self.stride == 1:
            return [load(tap) for tap in range(_TAPS)]
        pairs = [(load(further), load(further + module.width)) for further in (0, 2)]
        kind = ir.VectorType(I32, module.width)
        even, odd = (ir.Constant(kind, [2 * i + first for i in range(module.width)]) for first in (0, 1))
        return [b.shuffle_vector(*pairs[pair], order) for pair, order in ((0, even), (0, odd), (1, even))]

    def _store(self, unit: _Unit, row: ir.Value, total: ir.Value) -> None:
        body = self.body
        result = body.minimum(self.high, body.maximum(self.low, total))
        place = body.at(unit.output, body.builder.mul(row, self.sides[1][3]), F32)
        body.masked_store(result, place, unit.mask)
