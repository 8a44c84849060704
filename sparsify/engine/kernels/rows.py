"""Depthwise convolutions and maximum pools of 3 x 3 taps, down the rows of a plane.

Some vectors of a row are in work at a time. Each row of the input is loaded once and goes into all output rows
that it is part of, whose sums so far stay in registers. With a stride of 2 the columns are sorted into even and
odd in registers, so that the planes need not be split by phase. What lies around an image is taken as zeros without
being looked at, so that its plane needs no border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, Body, Module
from sparsify.engine.layout import Planes
from sparsify.engine.program import Convolution, Epilogue, Operation, Pool
from sparsify.engine.sliding import is_by_rows
from sparsify.engine.stage import Context, Stage

_RATE = 3.5e9  # vector operations a second and thread
_BAND = 7  # rows that are worth the loading of those around them
_TAPS = 3


def propose(operation: Operation, context: Context) -> Stage | None:
    """What `is_by_rows` says."""
    if not is_by_rows(operation, context.layouts):
        return None
    assert isinstance(operation, Convolution | Pool)
    input, output = context.layouts[operation.input], context.layouts[operation.output]
    return None if input is None or output is None else stage(operation, input, output, context)


def name(stride: int, largest: bool = False) -> str:
    """The function for a stride, of sums or of maxima."""
    return f"sparsify_rows_{'max' if largest else 'sum'}_{stride}"


def stage(
    operation: Convolution | Pool, input: Planes, output: Planes, context: Context, rows: int | None = None
) -> Stage:
    """The stage of an operation; a tile takes so many `rows` of all channels, by default some of both."""
    channels, stride = output.channels, operation.stride[0]
    if isinstance(operation, Convolution):
        epilogue = operation.epilogue
        weights = np.concatenate([np.asarray(operation.weight).reshape(channels, -1), operation.bias[:, None]], axis=1)
    else:
        epilogue, weights = Epilogue(), np.zeros((channels, _TAPS**2 + 1), np.float32)
    vectors = -(-output.width // context.target.width)
    # In bands where there are enough rows: the kernels before and after share positions among threads, too. They are
    # those of the output's planes, or parts of them.
    tiles = context.threads * context.tuning.tiles_per_thread
    wanted = -(-output.height // max(1, min(output.height // _BAND, tiles // 2)))
    if output.bands > 1:
        parts = [part for part in range(output.band_rows, 0, -1) if output.band_rows % part == 0]
        wanted = min(parts, key=lambda part: abs(part - wanted))
    bands = -(-output.height // (rows or wanted))
    together = channels if rows else -(-channels * bands // tiles)
    groups = -(-channels // together)
    above, left = operation.padding[:2]
    numbers = [
        channels, together, groups, rows or wanted, output.images, output.height, output.width,
        input.height, input.width, above, left, input.row(0), input.channel, input.plane, input.pitch,
        output.row(0), output.channel, output.plane, output.pitch, output.band_rows,
        output.band - output.band_rows * output.pitch,
    ]  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    outside = np.zeros(4 * context.target.width, np.float32)
    constants = (np.array(numbers, np.int64), weights.astype(np.float32), limits, outside)
    operations = _TAPS**2 * channels * output.images * output.height
    return Stage(
        kernel="rows",
        function=name(stride, isinstance(operation, Pool)),
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
    for stride in (1, 2):
        for largest in (False, True):
            _Rows(Body(module, name(stride, largest)), stride, largest).emit()


@dataclass(frozen=True, eq=False)
class _Unit:
    """A vector of output columns in work: weights, where it reads and writes, and which lanes it stores."""

    weights: Sequence[ir.Value]  # the last one the bias
    input: ir.Value
    output: ir.Value
    mask: ir.Value
    inside: Mapping[int, ir.Value]  # lanes of a tap that lie in the image, where there may be others


class _Rows:
    """One function while it is written."""

    def __init__(self, body: Body, stride: int, largest: bool) -> None:
        self.body, self.stride, self.largest = body, stride, largest
        self.ahead = (_TAPS - 1) // stride  # outputs that are begun before their last row is there
        self.buffers, constants, self.tile = body.arguments
        parameters, self.weights, limits, self.zeros = (body.pointer(constants, i) for i in range(4))
        self.low, self.high = (body.splat(body.load(limits, i, F32)) for i in (0, 1))
        numbers = body.numbers(parameters, 21)
        self.channels, self.together, self.groups, self.band, self.images, self.height, self.width = numbers[:7]
        self.rows, self.columns, self.above, self.left = numbers[7:11]  # of the input, and its padding
        self.sides = (numbers[11:15], numbers[15:19])  # start, channel, plane and pitch of input and output
        self.whole, self.gap = numbers[19:]  # rows of the output's bands, and what lies between two of them

    def emit(self) -> None:
        """Two channels at a time where a row is one vector, else as many vectors as registers allow."""
        body, b, lanes = self.body, self.body.builder, self.body.module.width
        first = b.mul(b.urem(self.tile, self.groups), self.together)
        self.top = b.mul(b.udiv(self.tile, self.groups), self.band)
        self.bottom = body.smaller(self.height, b.add(self.top, self.band))
        skipped = b.mul(b.udiv(self.top, self.whole), self.gap)
        self.starts = (self.sides[0][0], b.add(self.sides[1][0], skipped))
        last = body.smaller(self.channels, b.add(first, self.together))
        narrow = b.icmp_signed("<=", self.width, body.const(lanes))
        pairs = b.select(narrow, b.add(first, b.and_(b.sub(last, first), body.const(-2))), first)
        zero = body.const(0)
        with body.loop(0, self.images) as image:
            with body.loop(first, pairs, 2) as pair:
                self._go(
                    [self._unit(image.index, b.add(pair.index, body.const(i)), zero, {0, _TAPS - 1}) for i in (0, 1)]
                )
            with body.loop(pairs, last) as channel:
                done: ir.Value = zero
                for together in (4, 2, 1) if self.stride == 1 else (2, 1):
                    vectors = b.udiv(b.add(b.sub(self.width, done), body.const(lanes - 1)), body.const(lanes))
                    whole = b.and_(vectors, body.const(-together))
                    stop = b.add(done, b.mul(whole, body.const(lanes)))
                    with body.loop(done, stop, together * lanes) as turn:
                        columns = [b.add(turn.index, body.const(i * lanes)) for i in range(together)]
                        ends = [{0} if i == 0 else set() for i in range(together)]
                        ends[-1].add(_TAPS - 1)
                        places = zip(columns, ends, strict=True)
                        self._go([self._unit(image.index, channel.index, *place) for place in places])
                    done = stop
        body.done()

    def _unit(self, image: ir.Value, channel: ir.Value, column: ir.Value, edges: set[int]) -> _Unit:
        """The vector that begins at an output column; `edges`: taps that may lie outside the image."""
        body, b = self.body, self.body.builder
        places = []
        for i, (_, by_channel, by_image, _) in enumerate(self.sides):
            place = b.add(self.starts[i], b.add(b.mul(channel, by_channel), b.mul(image, by_image)))
            further = b.sub(b.mul(column, body.const(self.stride)), self.left) if i == 0 else column
            places.append(body.at(body.pointer(self.buffers, i), b.add(place, further), F32))
        count = _TAPS**2 + 1
        mine = body.at(self.weights, b.mul(channel, body.const(count)), F32)
        weights = [] if self.largest else [body.splat(body.load(mine, i, F32)) for i in range(count)]
        mask = body.first_lanes(b.sub(self.width, column))
        return _Unit(weights, places[0], places[1], mask, {tap: self._inside(tap, column) for tap in edges})

    def _inside(self, tap: int, column: ir.Value) -> ir.Value:
        """The lanes in which the first or the last tap lies in the image, for the vector that begins at a column."""
        body, b = self.body, self.body.builder
        first = b.sub(b.mul(column, body.const(self.stride)), self.left)
        if tap == 0:  # all but the first lane, and that too where nothing is to its left
            return body.lanes(b.select(b.icmp_signed("<", first, body.const(0)), body.const(-2), body.const(-1)))
        there = b.sub(self.columns, b.add(first, body.const(tap)))
        return body.first_lanes(b.ashr(b.add(there, body.const(self.stride - 1)), body.const(self.stride - 1)))

    def _go(self, units: list[_Unit]) -> None:
        """All rows of some units. Carried from one output row to the next: for each unit the sums of the
        following outputs, whose first input rows are in already."""
        body, b, known = self.body, self.body.builder, _TAPS - self.stride
        begun: list[list[ir.Value]] = [[] for _ in units]
        for unit, sums in zip(units, begun, strict=True):
            for row in range(known):
                self._take(unit, sums, self.top, row, may_be_outside=row == 0)
        last = b.sub(self.bottom, body.const(1))
        with body.loop(self.top, last, 1, [total for sums in begun for total in sums]) as turn:
            turn.following = self._finish(units, turn.index, turn.state)
        self._finish(units, last, turn.state, is_last=True)

    def _finish(
        self, units: list[_Unit], number: ir.Value, state: list[ir.Value], is_last: bool = False
    ) -> list[ir.Value]:
        """Store an output row; returns the sums that remain."""
        following = []
        for unit in units:
            mine, state = state[: self.ahead], state[self.ahead :]
            for row in range(_TAPS - self.stride, _TAPS):
                self._take(unit, mine, number, row, may_be_outside=is_last and row == _TAPS - 1)
            self._store(unit, number, mine[0])
            following += mine[1:]
        return following

    def _take(self, unit: _Unit, sums: list[ir.Value], number: ir.Value, place: int, may_be_outside: bool) -> None:
        """Bring an input row into all outputs that it is part of; `place` is where it lies in the window of the
        output row of that number, the first one."""
        body, columns = self.body, self._columns(unit, self._row(unit, number, place, may_be_outside))
        for further in range(place // self.stride + 1):
            tap = (place - further * self.stride) * _TAPS
            if further == len(sums):
                sums.append(columns[0] if self.largest else unit.weights[-1])
            for i, x in enumerate(columns):
                total = sums[further]
                sums[further] = body.maximum(x, total) if self.largest else body.fma(unit.weights[tap + i], x, total)

    def _row(self, unit: _Unit, number: ir.Value, place: int, may_be_outside: bool) -> ir.Value:
        """Where an input row begins, which `may_be_outside` of the image."""
        body, b = self.body, self.body.builder
        row = b.sub(b.add(b.mul(number, body.const(self.stride)), body.const(place)), self.above)
        there = body.at(unit.input, b.mul(row, self.sides[0][3]), F32)
        return b.select(b.icmp_unsigned("<", row, self.rows), there, self.zeros) if may_be_outside else there

    def _columns(self, unit: _Unit, start: ir.Value) -> list[ir.Value]:
        """An input row's vectors for the three taps."""
        body, b, module = self.body, self.body.builder, self.body.module

        def load(further: int) -> ir.Value:
            return b.load(body.at(start, further, F32), typ=module.vector, align=4)

        if self.stride == 1:
            taps = [load(tap) for tap in range(_TAPS)]
        else:  # the last tap's are the first one's, a lane further
            width = module.width
            kind, pair = ir.VectorType(I32, width), (load(0), load(width))
            even, odd = (ir.Constant(kind, [2 * i + first for i in range(width)]) for first in (0, 1))
            taps = [b.shuffle_vector(*pair, order) for order in (even, odd)]
            next_one = body.splat(body.load(start, 2 * width, F32))
            taps.append(b.shuffle_vector(taps[0], next_one, ir.Constant(kind, [1 + i for i in range(width)])))
        return [b.select(unit.inside[i], x, body.zeros()) if i in unit.inside else x for i, x in enumerate(taps)]

    def _store(self, unit: _Unit, number: ir.Value, total: ir.Value) -> None:
        body = self.body
        result = body.minimum(self.high, body.maximum(self.low, total))
        place = body.at(unit.output, body.builder.mul(number, self.sides[1][3]), F32)
        body.masked_store(result, place, unit.mask)
