"""A 1 x 1 layer and the depthwise layer after it, some rows of an image at a time.

What lies between them is larger than what the first reads and the second writes where a network is wide, and larger
than a core's cache. Here it is nowhere as a whole: a tile computes the rows that its rows of the second layer look at,
in memory that stays in the core's cache, and goes on with these. A row at the edge of two tiles is computed in both.

Source of the idea: Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2 (CVPR 2018), section 5.1.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsify.engine.claims import claim, release, scratch
from sparsify.engine.encode import Encoder, encoder
from sparsify.engine.ir import POINTER, Body, Module
from sparsify.engine.kernels import rows, straight
from sparsify.engine.layout import Planes
from sparsify.engine.memory import AROUND
from sparsify.engine.program import Convolution, Operation
from sparsify.engine.sliding import Positions, has_few_taps, is_pointwise
from sparsify.engine.stage import Context, Stage
from sparsify.engine.tiles import FAR, Layer

_TAPS = 3
_LARGE = 2  # times what a core's cache holds, from which this pays
_ROWS = 5  # constants of the second layer, its function's first


def propose(operation: Operation, context: Context) -> Stage | None:
    """None: it is for two operations."""
    return None


def pair(first: Operation, second: Operation, context: Context) -> Stage | None:
    """The stage that does both, for `second` that alone reads what `first` writes; None where they are not such
    layers, or where what lies between them stays in a cache."""
    encode, tuning = encoder(context.target.level), context.tuning
    if encode is None or context.prefer not in ("", "tandem"):
        return None
    if not isinstance(first, Convolution) or not isinstance(second, Convolution):
        return None
    input, between, output = (context.layouts[name] for name in (first.input, first.output, second.output))
    if input is None or between is None or output is None or second.input != first.output:
        return None
    plain = is_pointwise(first) and first.groups == 1 and first.epilogue.residual is None
    sparse = first.nonzeros < tuning.dense_above * first.weight.size
    if not (plain and sparse and between.lanes == between.images == 1 and has_few_taps(second)):
        return None
    is_large = 4 * between.size >= _LARGE * tuning.tandem_bytes * context.threads
    if not is_large or 4 * max(input.size, between.size) >= FAR:
        return None
    together = _rows_together(between, output, second, context)
    return _stage(first, second, input, between, output, together, encode, context) if together else None


def _rows_together(between: Planes, output: Planes, second: Convolution, context: Context) -> int:
    """The most rows of the output whose input a core's cache holds, the same number of tiles for each thread; 0 where
    there are none."""
    stride, row = second.stride[0], 4 * between.channels * between.pitch
    for count in range(output.band_rows, 0, -1):
        fits = ((count - 1) * stride + _TAPS) * row <= context.tuning.tandem_bytes
        if fits and output.band_rows % count == 0 and -(-output.height // count) % context.threads == 0:
            return count
    return 0


def _stage(
    first: Convolution, second: Convolution, input: Planes, between: Planes, output: Planes, together: int,
    encode: Encoder, context: Context,
) -> Stage:  # fmt: skip
    stride, above = second.stride[0], second.padding[0]
    height = (together - 1) * stride + _TAPS
    # As if the value lay in bands, of which there is only one at a time.
    held = replace(between, plane=height * between.pitch, lead=0, tail=0, band_height=height)
    tiles = -(-output.height // together)
    starts = np.arange(tiles) * together * stride - above
    where, panel = _positions(input, held, starts, context.target.width)
    layer = Layer(input, held, where, first.nonzeros, first.nonzeros / first.weight.size, panel)
    one = straight.stage(first, layer, encode, context)
    two = rows.stage(second, held, output, context, together)
    region = held.band * 4 + 2 * AROUND
    numbers = [
        context.threads, tiles, one.tiles // tiles, region,
        together * stride * held.pitch * 4, AROUND + above * held.pitch * 4,
    ]  # fmt: skip
    return Stage(
        kernel="tandem",
        function=f"sparsify_tandem_{stride}",
        reads=(first.input,),
        writes=(second.output,),
        tiles=tiles,
        constants=(np.array(numbers, np.int64), *two.constants, *one.constants),
        layouts={first.input: input, second.output: output},
        code=one.code,
        scratch=scratch(context.threads, region),
        flops=one.flops + two.flops,
        density=one.density,
        seconds=one.seconds + two.seconds,
        why=f"{one.why}; with the depthwise layer, {together} rows at a time",
    )


def _positions(input: Planes, held: Planes, starts: np.ndarray, width: int) -> tuple[Positions, int]:
    """The vectors of each tile, whose rows begin at `starts`, and how many: the same for all, some have no lanes."""
    panels = []
    for start in starts:
        table, row, stop = [], max(0, int(start)), min(input.height, int(start) + held.band_rows)
        while row < stop:
            end = min(stop, (row // input.band_rows + 1) * input.band_rows)
            length = (end - row) * held.pitch
            further = np.arange(0, length, width)
            masks = (1 << np.minimum(width, length - further)) - 1
            there = (row - start) * held.pitch + further
            table.append(np.stack([(input.row(row) + further) * 4, there * 4, masks, masks * 0], axis=1))
            row = end
        panels.append(np.concatenate(table))
    panel = max(len(table) for table in panels)
    idle = [np.repeat(table[-1:] * [1, 1, 0, 1], panel - len(table), axis=0) for table in panels]
    filled = np.concatenate([table for both in zip(panels, idle, strict=True) for table in both])
    return Positions(filled.astype(np.int32), held.height * held.width), panel


def emit(module: Module) -> None:
    """void sparsify_tandem_<stride>(buffers, constants, tile): some rows of both layers."""
    straight.emit(module)
    rows.emit(module)
    for stride in (1, 2):
        body = Body(module, f"sparsify_tandem_{stride}")
        b = body.builder
        buffers, constants, tile = body.arguments
        inner = body.room(POINTER, 2)
        numbers = body.numbers(body.pointer(constants, 0), 6)
        threads, tiles, blocks, region, step, before = numbers
        flags = body.pointer(buffers, 2)
        flag, held = claim(body, flags, b.udiv(b.mul(tile, threads), tiles), threads, region)
        body.store(body.pointer(buffers, 0), inner, 0, align=8)
        body.store(body.bytes(held, body.const(AROUND)), inner, 1, align=8)
        named = module.llvm.globals
        with body.loop(0, blocks) as block:
            number = b.add(b.mul(tile, blocks), block.index)
            b.call(named["sparsify_block"], [inner, body.at(constants, _ROWS, POINTER), number])
        body.store(body.bytes(held, b.sub(before, b.mul(tile, step))), inner, 0, align=8)
        body.store(body.pointer(buffers, 1), inner, 1, align=8)
        b.call(named[rows.name(stride)], [inner, body.at(constants, 1, POINTER), tile])
        release(body, flag)
        body.done()
