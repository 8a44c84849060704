"""Dense convolutions of tall kernels with half the multiplications: minimal filtering down the columns.

Four rows of the output are computed at once. What they read is transformed first, row by row and each lane by itself,
into one line for each of the filter's points; at every point the transformed kernel slides along these lines; and the
points' sums, which stay in registers, make the four rows. Rows of a strided convolution are filtered phase by phase,
with sums in common. Along the rows nothing is transformed, so that lanes never mix and little precision is lost.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016), for minimal filtering of networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir

from sparsify.engine.claims import claim, release, scratch
from sparsify.engine.filtering import minimal_filter
from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.engine.layout import LINE, Planes
from sparsify.engine.memory import Written
from sparsify.engine.program import Convolution, Operation
from sparsify.engine.sliding import sweep
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.target import Level
from sparsify.engine.tiles import Layer, prepare

_ROWS = 4  # of the output, filtered together
_TAPS = (3, 4)  # of a phase of the kernel, from top to bottom
_TOGETHER: dict[Level, int] = {"avx512": 4, "avx2": 2, "generic": 2}  # channels whose sums fill the registers
# Of the multiplications that the CPU could do. With few registers there are more loads to each.
_SHARE: dict[Level, float] = {"avx512": 0.88, "avx2": 0.56, "generic": 1.0}
_STREAM = 30e9  # bytes of weights a second and thread, which every tile reads
_FINISH = 30  # of a channel's vector of four rows, in vector multiplications


def propose(operation: Operation, context: Context) -> Proposal | None:
    """A Convolution of one group on whole planes, three or four taps high in each phase, zeros multiplied like any."""
    if not isinstance(operation, Convolution) or operation.groups > 1 or operation.dilation != (1, 1):
        return None
    layer = prepare(operation, context)
    if layer is None or -(-operation.weight.shape[2] // operation.stride[0]) not in _TAPS:
        return None
    output = layer.output
    if output.height < _ROWS or output.bands > 1 or layer.input.bands > 1:
        return None
    if output.lanes > 1 and output.height % _ROWS:  # the last rows would be filtered with those above them
        return None
    cut = _Cut(operation, layer, context)
    return Proposal(cut.seconds, lambda: _stage(operation, context, layer, cut))


class _Cut:
    """How a layer is cut into tiles: of `_ROWS` rows, and of `span` vectors where their lines would not stay near."""

    def __init__(self, operation: Convolution, layer: Layer, context: Context) -> None:
        (rows, columns), (down, along) = operation.weight.shape[2:], operation.stride
        output, width = layer.output, context.target.width
        self.taps = -(-rows // down)
        self.points = self.taps + _ROWS - 1
        self.phases, self.sides = min(down, rows), min(along, columns)
        self.lines = layer.input.channels * self.phases * self.sides
        self.further = (columns - 1) // along  # positions that taps reach beyond those of the output
        self.beyond = self.further if output.lanes > 1 else -(-self.further // width)  # and vectors
        self.vectors = output.width if output.lanes > 1 else -(-output.width // width)
        most = context.tuning.panel_bytes // 2 // (self.points * self.lines * width * 4) - self.beyond
        self.strips = -(-self.vectors // max(1, most))
        self.span = -(-self.vectors // self.strips)
        self.strips = -(-self.vectors // self.span)
        self.line = (self.span + self.beyond) * width  # floats
        self.point = (-(-self.lines * self.line // LINE) | 1) * LINE  # an odd number of cache lines
        self.down = -(-output.height // _ROWS)
        self.tiles = output.blocks * self.down * self.strips
        self.together = _TOGETHER[context.target.level]
        self.blocks = -(-output.channels // self.together)
        self.depth = layer.input.channels * self.phases * columns
        transform = self.lines * (self.span + self.beyond) * self.points**2
        channel = self.depth * self.points + _FINISH
        work = self.tiles * (transform + self.span * self.blocks * self.together * channel)
        weights = self.tiles * 4 * self.depth * self.points * output.channels
        rate = _SHARE[context.target.level] * context.target.multiplications
        self.seconds = (work / rate + weights / _STREAM) / context.threads


def _stage(operation: Convolution, context: Context, layer: Layer, cut: _Cut) -> Stage:
    input, output, epilogue, width = layer.input, layer.output, operation.epilogue, context.target.width
    unit = width if output.lanes > 1 else 1  # floats of a position in a line
    column = np.arange(operation.weight.shape[3])
    inner, phase = (np.arange(count)[:, None, None] for count in (input.channels, cut.phases))
    line = (inner[..., None] * cut.phases + phase) * cut.sides + column % operation.stride[1]
    shifts = (line * cut.line + column // operation.stride[1] * unit) * 4
    residual = () if epilogue.residual is None else (epilogue.residual,)
    has, room = len(residual), cut.points * cut.point * 4
    far = output.lanes > 1  # what a position has of all channels lies together then, and is written together
    parameters = [
        cut.depth, cut.lines, cut.line * 4, cut.point * 4, _below(operation, input) * 4,
        (input.step * operation.stride[1] if far else width) * 4, (output.step if far else width) * 4,
        output.pitch * output.step * 4, output.channel * 4, output.channels, far, 1 + has, has or 1, has,
        context.threads, cut.tiles, room,
    ]  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    tables = [np.array(parameters, np.int64), _tiles(operation, layer, cut, width), _lines(operation, input, cut)]
    return Stage(
        kernel="winograd",
        function=_name(cut.taps),
        reads=(operation.input, *residual),
        writes=(operation.output,),
        tiles=cut.tiles,
        constants=(*tables, shifts.astype(np.int32).ravel(), _weights(operation, cut), limits),
        layouts={operation.input: input, **dict.fromkeys((operation.output, *residual), output)},
        scratch=scratch(context.threads, room),
        sweep=sweep(operation, input, output, _ROWS * output.width, cut.strips),
        flops=2.0 * layer.nonzeros * layer.where.useful,
        density=layer.density,
        seconds=cut.seconds,
        why=f"density {layer.density:.0%}, {_ROWS} rows by {cut.points} products for {_ROWS * cut.taps}",
    )


def _tiles(operation: Convolution, layer: Layer, cut: _Cut, width: int) -> np.ndarray:
    """int32 [tiles, 8]: input and output (bytes), rows that the tile above writes, vectors, lanes in them; vectors and
    lanes of a line; 0."""
    input, output, (down, along) = layer.input, layer.output, operation.stride
    block, number, strip = np.meshgrid(*map(np.arange, (output.blocks, cut.down, cut.strips)), indexing="ij")
    row = np.minimum(number * _ROWS, output.height - _ROWS)  # the last ones may go back
    first = strip * cut.span
    vectors = np.minimum(cut.span, cut.vectors - first)
    if output.lanes > 1:
        here = block * input.plane + row * down * input.pitch + first * along
        there = block * output.plane + row * output.pitch + first
        lanes, ends = vectors * width, (vectors + cut.beyond) * width
    else:
        here = block * input.plane + row * input.pitch + first * width
        there = block * output.plane + row * output.pitch + first * width
        lanes = np.minimum(vectors * width, output.width - first * width)
        ends = lanes + cut.further
    entries = [
        (here + input.lead) * input.step * 4, (there + output.lead) * output.step * 4, number * _ROWS - row, vectors,
        lanes, -(-ends // width), ends, 0 * row,
    ]  # fmt: skip
    return np.stack([entry.ravel() for entry in entries], axis=1).astype(np.int32)


def _below(operation: Convolution, input: Planes) -> int:
    """Floats from a row of a phase to the next."""
    return input.shift(operation.stride[0], 0) - input.shift(0, 0)


def _lines(operation: Convolution, input: Planes, cut: _Cut) -> np.ndarray:
    """int32 [lines, 2] in bytes: from a tile's place to a line's first row, and from there to its last one. Where a
    phase has a tap less nothing depends on the row after that, and the one before it is read again."""
    (top, left, *_), (down, _) = operation.padding, operation.stride
    begins = [[input.shift(i - top, j - left) for j in range(cut.sides)] for i in range(cut.phases)]
    first = np.arange(input.channels)[:, None, None] * input.channel + np.array(begins)
    short = np.array([len(range(i, operation.weight.shape[2], down)) < cut.taps for i in range(cut.phases)])
    last = _below(operation, input) * (cut.points - 1 - short[:, None])
    return np.stack([first, np.broadcast_to(last, first.shape)], axis=-1).reshape(-1, 2).astype(np.int32) * 4


def _weights(operation: Convolution, cut: _Cut) -> Written:
    """For each block of channels a line of their biases; then for each column of the weight and each of them, the
    kernel at the points."""
    size, (down, _) = cut.together, operation.stride
    length = size * (1 + cut.depth * cut.points)
    taps = minimal_filter(_ROWS, cut.taps).taps

    def write(place: np.ndarray) -> None:
        whole = np.asarray(operation.weight)
        for number, block in enumerate(place.reshape(cut.blocks, length)):
            chosen = slice(number * size, (number + 1) * size)
            weight = whole[chosen]  # [channels, inner, rows, columns]
            count, inner, rows, columns = weight.shape
            padded = np.zeros((count, inner, cut.taps * down, columns))
            padded[:, :, :rows] = weight
            phases = padded.reshape(count, inner, cut.taps, down, columns)[:, :, :, : cut.phases]
            block[:count] = operation.bias[chosen]
            products = block[size:].reshape(inner, cut.phases, columns, size, cut.points)
            products[..., :count, :] = np.einsum("octfj,pt->cfjop", phases, taps)

    return Written(cut.blocks * length, write)


def _name(taps: int) -> str:
    return f"sparsify_winograd_{taps}"


def emit(module: Module) -> None:
    """void sparsify_winograd_<taps>(buffers, constants, tile): some rows of all channels."""
    for taps in _TAPS:
        _emit(module, taps)


def _emit(module: Module, taps: int) -> None:
    filter, together = minimal_filter(_ROWS, taps), _TOGETHER[module.target.level]
    body = Body(module, _name(taps))
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, tiles, lines, shifts, weights, limits = (body.pointer(constants, i) for i in range(6))
    depth, count, line, point, below, across, advance, *more = body.numbers(parameters, 17)
    row, channel, channels, far, output, added, has, threads, all_tiles, room = more
    entry = body.at(tiles, b.mul(tile, body.const(8)), I32)
    here, there, skip, vectors, lanes, all_vectors, all_lanes = (
        b.zext(body.load(entry, i, I32), I64) for i in range(7)
    )
    home = b.udiv(b.mul(tile, threads), all_tiles)
    flag, held = claim(body, body.pointer(buffers, b.add(output, body.const(1))), home, threads, room)

    source = body.bytes(body.pointer(buffers, 0), here)
    with body.loop(0, count) as number:
        where = body.at(lines, b.mul(number.index, body.const(2)), I32)
        begin, last = (b.sext(body.load(where, i, I32), I64) for i in (0, 1))
        rows = [b.add(begin, b.mul(below, body.const(i))) for i in range(taps + _ROWS - 2)] + [b.add(begin, last)]
        target = body.bytes(held, b.mul(number.index, line))
        with body.loop(0, all_vectors) as turn:
            mask = body.first_lanes(b.sub(all_lanes, b.mul(turn.index, body.const(module.width))))
            places = [b.add(place, b.mul(turn.index, across)) for place in rows]
            read = [body.masked_load(body.bytes(source, place), mask) for place in places]
            for i, coefficients in enumerate(filter.inputs):
                value = _combined(body, coefficients, read)
                body.store(value, body.bytes(target, b.mul(point, body.const(i))), turn.index)

    blocks = b.udiv(b.add(channels, body.const(together - 1)), body.const(together))
    far = b.icmp_signed("!=", far, body.const(0))
    outer, inner = b.select(far, vectors, blocks), b.select(far, blocks, vectors)
    bounds = [body.splat(body.load(limits, i, F32)) for i in (0, 1)]
    results, olds = (body.bytes(body.pointer(buffers, i), there) for i in (output, added))
    length = b.mul(b.add(b.mul(depth, body.const(taps + _ROWS - 1)), body.const(1)), body.const(together))
    with body.loop(0, outer) as slow, body.loop(0, inner) as fast:
        vector, block = (b.select(far, *pair) for pair in ((slow.index, fast.index), (fast.index, slow.index)))
        numbers = body.at(weights, b.mul(block, length), F32)
        inputs = body.at(held, vector, module.vector)
        sums = _products(body, depth, inputs, point, shifts, body.at(numbers, together, F32), taps, together)
        mask = body.first_lanes(b.sub(lanes, b.mul(vector, body.const(module.width))))
        bits = b.zext(b.bitcast(mask, ir.IntType(module.width)), I64)
        first = b.mul(block, body.const(together))
        for i in range(together):
            number = b.add(first, body.const(i))
            with b.if_then(b.icmp_signed("<", number, channels)):
                at = b.add(b.mul(number, channel), b.mul(vector, advance))
                bias = body.splat(body.load(numbers, i, F32))
                for j, value in enumerate(_outputs(body, filter.outputs, sums[i])):
                    place = b.add(at, b.mul(row, body.const(j)))
                    chosen = b.select(b.icmp_signed("<", body.const(j), skip), body.const(0), bits)
                    body.finish_vector(b.fadd(value, bias), place, chosen, results, olds, has, bounds)
    release(body, flag)
    body.done()


def _products(
    body: Body, depth: ir.Value, inputs: ir.Value, point: ir.Value, shifts: ir.Value, weights: ir.Value, taps: int,
    together: int,
) -> list[list[ir.Value]]:  # fmt: skip
    """Sums over the columns: for each channel, at each point."""
    b, points = body.builder, taps + _ROWS - 1
    with body.loop(0, depth, 1, [body.zeros()] * (together * points)) as column:
        shift = b.sext(body.load(shifts, column.index, I32), I64)
        line = body.at(weights, b.mul(column.index, body.const(together * points)), F32)
        column.following = list(column.state)
        for i in range(points):
            x = body.vector(body.bytes(inputs, b.add(shift, b.mul(point, body.const(i)))), 0)
            for j in range(together):
                number = j * points + i
                weight = body.splat(body.load(line, number, F32))
                column.following[number] = body.fma(weight, x, column.state[number])
    return [column.state[i * points : (i + 1) * points] for i in range(together)]


def _outputs(body: Body, matrix: np.ndarray, sums: Sequence[ir.Value]) -> list[ir.Value]:
    """matrix @ sums. Points of two signs have their sum and their difference in common."""
    b, left, columns, values = body.builder, list(range(len(sums))), [], []
    while left:
        i = left.pop(0)
        same = [j for j in left if (abs(matrix[:, i]) == abs(matrix[:, j])).all()]
        if same:
            left.remove(same[0])
            alike = matrix[:, i] == matrix[:, same[0]]
            columns += [np.where(alike, matrix[:, i], 0), np.where(alike, 0, matrix[:, i])]
            values += [b.fadd(sums[i], sums[same[0]]), b.fsub(sums[i], sums[same[0]])]
        else:
            columns.append(matrix[:, i])
            values.append(sums[i])
    return [_combined(body, row, values) for row in np.stack(columns, axis=1)]


def _combined(body: Body, coefficients: np.ndarray, values: Sequence[ir.Value]) -> ir.Value:
    """The sum of values times coefficients."""
    b, total = body.builder, None
    for coefficient, value in zip(coefficients, values, strict=True):
        if coefficient == 1:
            total = value if total is None else b.fadd(total, value)
        elif coefficient:
            factor = ir.Constant(body.module.vector, [float(coefficient)] * body.module.width)
            total = b.fmul(factor, value) if total is None else body.fma(factor, value, total)
    return total
