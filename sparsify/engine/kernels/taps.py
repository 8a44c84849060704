"""Operators that stay within a channel: depthwise convolution, maximum and average pooling.

Eight vectors of positions are in work at a time; each tap of the channel is one weight for all of them.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.engine.layout import Planes, up
from sparsify.engine.program import Convolution, Epilogue, Operation, Pool
from sparsify.engine.sliding import Positions, positions, source, sweep, taps
from sparsify.engine.stage import Context, Stage
from sparsify.engine.tiles import shares_positions

_TOGETHER = 8  # vectors of positions in registers
_TILE = 4096  # vector operations that make a tile worth its claim
_RATE = 2.5e9  # vector operations a second and thread


def propose(operation: Operation, context: Context) -> Stage | None:
    """Depthwise convolutions with one output for each channel, and pools, on planes."""
    if isinstance(operation, Convolution):
        if operation.groups != len(operation.weight) or operation.weight.shape[1] != 1:
            return None
        epilogue, kernel = operation.epilogue, operation.weight.shape[2:]
    elif isinstance(operation, Pool):
        epilogue, kernel = Epilogue(), operation.kernel
    else:
        return None
    found = source(operation, context)
    if found is None or found[0].channels != found[1].channels:
        return None
    input, output = found
    where = positions(input, output, operation.stride, context.target.width)
    weights, scale = _numbers(operation, input, output, where, context)
    return _stage(operation, context, found, where, epilogue, kernel, weights, scale)


def _numbers(
    operation: Convolution | Pool, input: Planes, output: Planes, where: Positions, context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [c, taps + 1], the last one the bias, and the factor of each result [vectors, width]."""
    scale = np.ones((len(where.table), context.target.width), np.float32)
    if isinstance(operation, Convolution):
        flat = np.asarray(operation.weight).reshape(output.channels, -1)
        return np.concatenate([flat, operation.bias[:, None]], axis=1).astype(np.float32), scale
    count = operation.kernel[0] * operation.kernel[1]
    start = -np.inf if operation.kind == "max" else 0.0
    weights = np.concatenate([np.ones((output.channels, count)), np.full((output.channels, 1), start)], axis=1)
    if operation.kind == "average":
        shape = context.values[operation.input].shape
        scale = _divisors(operation, shape[2:], output, where, context.target.width)
    return weights.astype(np.float32), scale


def _divisors(operation: Pool, size: tuple[int, ...], output: Planes, where: Positions, width: int) -> np.ndarray:
    """One over the number of elements in each window: float32 [vectors, width]."""
    axes = []
    for axis, outputs in ((0, output.height), (1, output.width)):
        first = np.arange(outputs)[:, None] * operation.stride[axis] - operation.padding[axis]
        tap = first + np.arange(operation.kernel[axis]) * operation.dilation[axis]
        padded_end = size[axis] + operation.padding[axis + 2]
        inside = (tap >= 0) & (tap < size[axis])
        counted = (tap < padded_end) if operation.count_padding else inside
        axes.append(counted.sum(axis=1))
    each = (1.0 / (axes[0][:, None] * axes[1][None, :])).astype(np.float32)  # [oh, ow]
    plane = np.ones(output.phase + width, np.float32)
    plane[output.index()[:, 0]] = each
    starts = where.table[:, 1].view(np.uint32) // 4
    return plane[starts[:, None].astype(np.int64) + np.arange(width)]


def _stage(
    operation: Convolution | Pool, context: Context, layouts: tuple[Planes, Planes], where: Positions,
    epilogue: Epilogue, kernel: tuple[int, ...], weights: np.ndarray, scale: np.ndarray,
) -> Stage:  # fmt: skip
    input, output = layouts
    shifts = taps(operation, kernel, input).ravel()
    vectors, channels = len(where.table), output.channels
    shares = context.threads * context.tuning.tiles_per_thread
    if input.lanes > 1:  # all channels of a few positions lie together
        together, run = channels, min(_TOGETHER, vectors)
        panel = up(max(1, min(-(-vectors // shares), _TILE // (channels * len(shifts)))), run)
    elif shares_positions(vectors, context.threads):  # as the layers around it
        together, panel = channels, -(-vectors // (2 * context.threads))
        run = panel
    else:
        together, panel, run = max(1, min(-(-channels // shares), _TILE // (vectors * len(shifts)))), vectors, vectors
    panels = -(-vectors // panel)
    reads = (operation.input, epilogue.residual) if epilogue.residual is not None else (operation.input,)
    parameters = np.array(
        [
            channels, together, vectors, len(shifts), input.channel, output.channel,
            len(reads), len(reads) - 1, epilogue.residual is not None, panels, panel, run,
        ],
        np.int64,
    )  # fmt: skip
    limits = np.array([epilogue.low, epilogue.high], np.float32)
    where_to = {operation.input: input, operation.output: output}
    if epilogue.residual is not None:
        where_to[epilogue.residual] = output
    flops = 2.0 * channels * len(shifts) * where.useful
    constants = (parameters, where.table, shifts, weights, scale, limits)
    return Stage(
        kernel="taps",
        function="sparsify_taps_max" if isinstance(operation, Pool) and operation.kind == "max" else "sparsify_taps",
        reads=reads,
        writes=(operation.output,),
        tiles=-(-channels // together) * panels,
        constants=constants,
        layouts=where_to,
        sweep=sweep(operation, input, output, panel, 1),
        flops=flops,
        seconds=channels * len(shifts) * vectors / _RATE / context.threads,
        why="each channel by itself",
    )


def emit(module: Module) -> None:
    """void sparsify_taps[_max](buffers, constants, tile): a few channels at some positions, a run of them at a time."""
    for name, largest in (("sparsify_taps", False), ("sparsify_taps_max", True)):
        _emit(module, name, largest)


def _emit(module: Module, name: str, largest: bool) -> None:
    body = Body(module, name)
    b = body.builder
    buffers, constants, tile = body.arguments
    parameters, table, shifts, weights, scale, limits = (body.pointer(constants, i) for i in range(6))
    channels, together, vectors, count, in_channel, out_channel, output, residual, has = body.numbers(parameters, 9)
    panels, panel, run = (body.load(parameters, i, I64, align=8) for i in (9, 10, 11))
    first = b.mul(b.udiv(tile, panels), together)
    last = body.smaller(channels, b.add(first, together))
    begin = b.mul(b.urem(tile, panels), panel)
    end = body.smaller(vectors, b.add(begin, panel))
    low, high = (body.splat(body.load(limits, i, F32)) for i in (0, 1))
    row_length = b.add(count, body.const(1))
    with body.loop(begin, end, run) as part, body.loop(first, last) as channel:
        outward = b.mul(channel.index, out_channel)
        kit = _Channel(
            body, table, scale, shifts, count, largest, (low, high), has,
            body.at(weights, b.mul(channel.index, row_length), F32),
            body.at(body.pointer(buffers, 0), b.mul(channel.index, in_channel), F32),
            body.at(body.pointer(buffers, output), outward, F32),
            body.at(body.pointer(buffers, residual), outward, F32),
        )  # fmt: skip
        done: ir.Value = part.index
        stop = body.smaller(end, b.add(done, run))
        for together in (_TOGETHER, 4, 2, 1):
            whole = b.add(done, b.and_(b.sub(stop, done), body.const(-together)))
            with body.loop(done, whole, together) as turn:
                kit.go(turn.index, together)
            done = whole
    body.done()


class _Channel:
    """The inner part: some vectors of one channel."""

    def __init__(
        self, body: Body, table: ir.Value, scale: ir.Value, shifts: ir.Value, count: ir.Value, largest: bool,
        limits: tuple[ir.Value, ir.Value], has_residual: ir.Value, weights: ir.Value, input: ir.Value,
        output: ir.Value, residual: ir.Value,
    ) -> None:  # fmt: skip
        self.body, self.table, self.scale, self.shifts, self.count = body, table, scale, shifts, count
        self.largest, self.limits, self.has_residual, self.weights = largest, limits, has_residual, weights
        self.input, self.output, self.residual = input, output, residual

    def _place(self, vector: ir.Value, column: int) -> ir.Value:
        b = self.body.builder
        at = b.add(b.mul(vector, self.body.const(4)), self.body.const(column))
        return b.zext(self.body.load(self.table, at, I32), I64)

    def go(self, vector: ir.Value, together: int) -> None:
        """Positions of the vectors `vector` to `vector + together`."""
        body, b = self.body, self.body.builder
        each = [b.add(vector, body.const(i)) for i in range(together)]
        inputs = [body.bytes(self.input, self._place(v, 0)) for v in each]
        bias = body.splat(body.load(self.weights, self.count, F32))
        with body.loop(0, self.count, carried=[bias] * together) as tap:
            shift = body.load(self.shifts, tap.index, I64, align=8)
            weight = body.splat(body.load(self.weights, tap.index, F32))
            following = []
            for pointer, sum_so_far in zip(inputs, tap.state, strict=True):
                x = b.load(body.at(pointer, shift, F32), typ=body.module.vector, align=4)
                step = body.maximum(sum_so_far, x) if self.largest else body.fma(weight, x, sum_so_far)
                following.append(step)
            tap.following = following
        for v, total in zip(each, tap.state, strict=True):
            self._finish(v, total)

    def _finish(self, vector: ir.Value, total: ir.Value) -> None:
        body, b = self.body, self.body.builder
        kind = body.module.vector
        there = self._place(vector, 1)
        if not self.largest:
            factor = b.load(body.at(self.scale, vector, kind), typ=kind, align=4)
            total = b.fmul(total, factor)
        body.finish_vector(
            total, there, self._place(vector, 2), self.output, self.residual, self.has_residual, self.limits
        )
