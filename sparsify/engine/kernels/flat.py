"""Elementwise operations and reshapes that go over whole buffers without looking at the layout."""

from __future__ import annotations

import numpy as np

from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.layout import LINE
from sparsify.engine.plan import is_flat, is_renaming
from sparsify.engine.program import Elementwise, Operation, Rearrange
from sparsify.engine.stage import Context, Stage

FUNCTIONS = {"add", "relu", "clip"}
_TILE = 16384  # floats


def propose(operation: Operation, context: Context) -> Stage | None:
    """add, relu and clip on operands of one layout; a reshape that moves nothing."""
    if isinstance(operation, Rearrange):
        possible, kind = is_renaming(operation, context.values), "copy"
    else:
        possible = isinstance(operation, Elementwise) and operation.function in FUNCTIONS
        possible = possible and is_flat(operation, context.values)
        kind = getattr(operation, "function", "")
    if not possible:
        return None
    assert isinstance(operation, Elementwise | Rearrange)
    names = tuple(name for name in operation.inputs if isinstance(name, str))
    layouts = {context.layouts[name] for name in (*names, operation.output)}
    if len(layouts) > 1 and any(layout is not None and not layout.vectors for layout in layouts):
        return None
    layout = context.layouts[operation.output]
    if len({(lay.lanes, lay.plane, lay.channel) if lay else None for lay in layouts}) > 1:
        return None
    size = layout.size if layout else int(np.prod(context.values[operation.output].shape))
    limits = [-np.inf, np.inf]
    if kind == "relu":
        limits[0] = 0.0
    elif kind == "clip":
        limits = [float(c.ravel()[0]) for c in operation.inputs if not isinstance(c, str)]
    where = {} if layout is None else dict.fromkeys((*names, operation.output), layout)
    return Stage(
        kernel="flat",
        function="sparsify_flat_add" if kind == "add" else "sparsify_flat",
        reads=names,
        writes=(operation.output,),
        tiles=-(-size // _TILE),
        constants=(np.array([size], np.int64), np.array(limits, np.float32)),
        layouts=where,
        flops=float(size),
        seconds=size * 8 / 20e9,
        why="one pass over the buffer",
    )


def emit(module: Module) -> None:
    """void sparsify_flat(buffers, constants, tile): clip; sparsify_flat_add: the sum of two buffers."""
    for name, operands in (("sparsify_flat", 1), ("sparsify_flat_add", 2)):
        body = Body(module, name)
        b = body.builder
        buffers, constants, tile = body.arguments
        (size,) = body.numbers(body.pointer(constants, 0), 1)
        low, high = (body.load(body.pointer(constants, 1), i, F32) for i in (0, 1))
        pointers = [body.pointer(buffers, i) for i in range(operands + 1)]
        first = b.mul(tile, body.const(_TILE))
        rest = b.sub(size, first)
        count = b.select(b.icmp_signed("<", rest, body.const(_TILE)), rest, body.const(_TILE))
        pointers = [body.at(p, first, F32) for p in pointers]
        whole = b.and_(count, body.const(-LINE))
        for kind, start, stop in ((module.vector, body.const(0), whole), (F32, whole, count)):
            wide = kind != F32
            with body.loop(start, stop, module.width if wide else 1) as i:
                operand = [b.load(body.at(p, i.index, F32), typ=kind, align=4) for p in pointers[:-1]]
                if operands == 2:
                    result = b.fadd(*operand)
                else:
                    bounds = [body.splat(x) if wide else x for x in (low, high)]
                    result = body.minimum(bounds[1], body.maximum(bounds[0], operand[0]))
                b.store(result, body.at(pointers[-1], i.index, F32), align=4)
        body.done()
