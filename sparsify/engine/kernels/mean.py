"""Global average pooling: the mean over a plane, whose borders are zero and may be summed along."""

from __future__ import annotations

import numpy as np

from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.plan import is_global_mean
from sparsify.engine.program import Operation, Reduce
from sparsify.engine.stage import Context, Stage

_TOGETHER = 32  # channels in a tile


def propose(operation: Operation, context: Context) -> Stage | None:
    """The mean over height and width of a value on planes."""
    if not isinstance(operation, Reduce) or not is_global_mean(operation, context.values):
        return None
    input, output = context.layouts[operation.input], context.layouts[operation.output]
    if input is None or input.phases != (1, 1) or (output is None) != (input.images == 1):
        return None
    assert input.fill == 0.0
    if output is None:
        where, out = {operation.input: input}, [1, 0, 0]
    else:
        where = {operation.input: input, operation.output: output}
        out = [output.channel, output.lead * output.step, output.plane * output.step]
    lanes = input.lanes
    plane = [input.channel, input.lead * input.step, input.plane * input.step, input.step]
    numbers = [input.channels, input.blocks, *plane, *out]
    scale = np.array([1.0 / (input.height * input.width)], np.float32)
    return Stage(
        kernel="mean",
        function="sparsify_mean" if lanes == 1 else "sparsify_mean_lanes",
        reads=(operation.input,),
        writes=(operation.output,),
        tiles=-(-input.channels // _TOGETHER),
        constants=(np.array(numbers, np.int64), scale),
        layouts=where,
        flops=float(input.size),
        seconds=input.size * 4 / 40e9 / context.threads,
        why="sum of the plane",
    )


def emit(module: Module) -> None:
    """One function for positions in the lanes, whose sum is a number, and one for images in the lanes."""
    for name, lanes in (("sparsify_mean", False), ("sparsify_mean_lanes", True)):
        body = Body(module, name)
        b, kind = body.builder, module.vector
        buffers, constants, tile = body.arguments
        numbers = body.numbers(body.pointer(constants, 0), 9)
        channels, blocks, in_channel, in_lead, in_plane, in_step, out_channel, out_lead, out_plane = numbers
        scale = body.load(body.pointer(constants, 1), 0, F32)
        first = b.mul(tile, body.const(_TOGETHER))
        rest = b.sub(channels, first)
        last = b.add(first, b.select(b.icmp_signed("<", rest, body.const(_TOGETHER)), rest, body.const(_TOGETHER)))
        with body.loop(first, last) as channel, body.loop(0, blocks) as block:
            start = b.add(b.mul(channel.index, in_channel), b.add(in_lead, b.mul(block.index, in_plane)))
            place = b.add(b.mul(channel.index, out_channel), b.add(out_lead, b.mul(block.index, out_plane)))
            input, output = (
                body.at(body.pointer(buffers, 0), start, F32),
                body.at(body.pointer(buffers, 1), place, F32),
            )
            whole = in_plane if lanes else b.and_(in_plane, body.const(-module.width))
            with body.loop(0, whole, in_step if lanes else module.width, [body.zeros()]) as turn:
                x = b.load(body.at(input, turn.index, F32), typ=kind, align=4)
                turn.following = [b.fadd(turn.state[0], x)]
            if lanes:
                b.store(b.fmul(turn.state[0], body.splat(scale)), output, align=4)
            else:
                with body.loop(whole, in_plane, 1, [body.reduce(turn.state[0])]) as turn:
                    turn.following = [b.fadd(turn.state[0], body.load(input, turn.index, F32))]
                body.store(b.fmul(turn.state[0], scale), output, 0)
        body.done()
