"""The three products of a sparse layer's training step, a batch in the lanes, on one structure of indices.

    forward         y[o, :]  = bias[o] + sum_i w[o, i] x[i, :]          SpMM
    input gradient  dx[i, :] = sum_o w[o, i] dy[o, :]                   SpMM by the transposed pattern
    weight gradient dw[o, i] = dy[o, :] . x[i, :]                       SDDMM, at the non-zeros only

Activations are planes [features, pitch]: a feature's values for the whole batch lie side by side; or several such
blocks behind each other, one for each panel of the batch (`products.Lanes`). The columns are cut
into blocks whose planes stay in the nearest caches; in a block the non-zeros lie row by row (`pattern.py`). Forward
shares out rows: a row's sums wait in y between blocks. Backward shares out blocks of columns: nobody else adds to a
block's dx, so both gradients come from one pass, and no second, transposed structure is ever built.

Source of the products: Gale, Zaharia, Young and Elsen, Sparse GPU Kernels for Deep Learning (2020); Nikdan et al.,
SparseProp (2023), for one backward pass that gives both gradients.
"""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import F32, I32, I64, Body, Module
from sparsify.nn.kernels._reduce import transposed_sums

MOST = {"avx512": 8, "avx2": 4, "generic": 4}  # vectors of a panel of the batch, kept in registers
LONGEST = 64  # non-zeros of a segment; the ring of partial sums below holds two of them
_RING = 2 * LONGEST


def emit(module: Module) -> None:
    """sparsify_forward_<vectors>, sparsify_backward_<vectors> and sparsify_weights_<vectors>, without dx."""
    for vectors in range(1, MOST[module.target.level] + 1):
        _forward(module, vectors)
        _backward(module, vectors, "backward")
        _backward(module, vectors, "weights")


class _Planes:
    """One panel of the batch in planes [features, pitch]. step: bytes from one panel to the next."""

    def __init__(self, body: Body, base: ir.Value, panel: ir.Value, step: ir.Value, pitch: ir.Value) -> None:
        self.body, self.pitch = body, pitch
        self.base = body.bytes(base, body.builder.mul(panel, step))

    def place(self, feature: ir.Value) -> ir.Value:
        b = self.body.builder
        return self.body.bytes(self.base, b.mul(b.zext(feature, I64) if feature.type == I32 else feature, self.pitch))


def _forward(module: Module, vectors: int) -> None:
    """void f(buffers, constants, tile): y of one tile of rows and one panel.

    buffers: x, y, values, bias.  constants: parameters (tiles, blocks, panels; in bytes: pitch, a panel of x, of y),
    bounds, rows, firsts, columns, row_starts, column_starts.
    """
    body = Body(module, f"sparsify_forward_{vectors}")
    b = body.builder
    buffers, constants, number = body.arguments
    x, y, values, bias = (body.pointer(buffers, i) for i in range(4))
    parameters, bounds, rows, firsts, columns, row_starts = (body.pointer(constants, i) for i in range(6))
    tiles, blocks, panels, pitch, x_step, y_step = body.numbers(parameters, 6)
    panel, tile = b.urem(number, panels), b.udiv(number, panels)
    inputs, outputs = (_Planes(body, p, panel, step, pitch) for p, step in ((x, x_step), (y, y_step)))
    edges = [body.load(row_starts, b.add(tile, body.const(i)), I64, align=8) for i in (0, 1)]
    with body.loop(*edges) as row:
        start = body.splat(body.load(bias, row.index, F32))
        place = outputs.place(row.index)
        for v in range(vectors):
            body.store(start, place, v)
    with body.loop(0, blocks) as block:
        piece = b.add(b.mul(block.index, tiles), tile)
        limits = [body.load(bounds, b.add(piece, body.const(i)), I64, align=8) for i in (0, 1)]
        with body.loop(*limits) as segment:
            place = outputs.place(body.load(rows, segment.index, I32))
            first, last = (body.load(firsts, b.add(segment.index, body.const(i)), I64, align=8) for i in (0, 1))
            begin = [body.vector(place, v) for v in range(vectors)]
            with body.loop(first, last, carried=begin) as entry:
                weight = body.splat(body.load(values, entry.index, F32))
                there = inputs.place(body.load(columns, entry.index, I32))
                entry.following = [body.fma(weight, body.vector(there, v), entry.state[v]) for v in range(vectors)]
            for v in range(vectors):
                body.store(entry.state[v], place, v)
    body.done()


def _backward(module: Module, vectors: int, name: str) -> None:
    """void f(buffers, constants, block): dw of one block of columns and, for "backward", its dx.

    buffers: x, dy, values, dw, dx.  constants: as in `_forward`.
    """
    body = Body(module, f"sparsify_{name}_{vectors}")
    b, wide = body.builder, module.width
    buffers, constants, block = body.arguments
    x, dy, values, dw = (body.pointer(buffers, i) for i in range(4))
    dx = body.pointer(buffers, 4) if name == "backward" else None
    parameters, bounds, rows, firsts, columns = (body.pointer(constants, i) for i in range(5))
    column_starts = body.pointer(constants, 6)
    tiles, _, panels, pitch, x_step, y_step = body.numbers(parameters, 6)
    ring = b.alloca(module.vector, size=ir.Constant(I32, _RING))
    ring.align = 64
    limits = [body.load(bounds, b.mul(b.add(block, body.const(i)), tiles), I64, align=8) for i in (0, 1)]
    base = body.load(firsts, limits[0], I64, align=8)
    sums = body.at(dw, base, F32)
    with body.loop(0, panels) as panel:
        inputs, outputs = (_Planes(body, p, panel.index, step, pitch) for p, step in ((x, x_step), (dy, y_step)))
        gradients = _Planes(body, dx, panel.index, x_step, pitch) if dx is not None else None
        if gradients is not None:
            edges = [body.load(column_starts, b.add(block, body.const(i)), I64, align=8) for i in (0, 1)]
            with body.loop(*edges) as column:
                place = gradients.place(column.index)
                for v in range(vectors):
                    body.store(body.zeros(), place, v)
        with body.loop(limits[0], limits[1], carried=[body.const(0)]) as segment:
            place = outputs.place(body.load(rows, segment.index, I32))
            first, last = (body.load(firsts, b.add(segment.index, body.const(i)), I64, align=8) for i in (0, 1))
            errors = [body.vector(place, v) for v in range(vectors)]
            with body.loop(first, last) as entry:
                column_index = body.load(columns, entry.index, I32)
                there = inputs.place(column_index)
                total = b.fmul(errors[0], body.vector(there, 0))
                for v in range(1, vectors):
                    total = body.fma(errors[v], body.vector(there, v), total)
                slot = b.and_(b.sub(entry.index, base), body.const(_RING - 1))
                b.store(total, body.at(ring, slot, module.vector), align=4 * wide)
                if gradients is not None:
                    weight = body.splat(body.load(values, entry.index, F32))
                    goes = gradients.place(column_index)
                    for v in range(vectors):
                        body.store(body.fma(weight, errors[v], body.vector(goes, v)), goes, v)
            ready = b.sub(last, base)
            done = segment.state[0]
            before = b.block
            with b.if_then(b.icmp_signed(">=", b.sub(ready, done), body.const(LONGEST))):
                upto = b.and_(ready, body.const(-wide))
                with body.loop(done, upto, wide) as group:
                    _reduce(body, ring, sums, group.index, panel.index, None)
                inside = b.block
            following = b.phi(I64)
            following.add_incoming(done, before)
            following.add_incoming(upto, inside)
            segment.following = [following]
        ready = b.sub(body.load(firsts, limits[1], I64, align=8), base)
        with body.loop(segment.state[0], ready, wide) as group:
            _reduce(body, ring, sums, group.index, panel.index, b.sub(ready, group.index))
    body.done()


def _reduce(
    body: Body, ring: ir.Value, sums: ir.Value, first: ir.Value, panel: ir.Value, count: ir.Value | None
) -> None:
    """sums[first:first + lanes] (+)= the lanes' sums of as many vectors of the ring; only `count` of them if given."""
    b, module = body.builder, body.module
    slot = b.and_(first, body.const(_RING - 1))
    places = [body.at(ring, b.add(slot, body.const(i)), module.vector) for i in range(module.width)]
    total = transposed_sums(b, [b.load(p, typ=module.vector, align=4 * module.width) for p in places])
    goes = body.at(sums, first, F32)
    mask = body.first_lanes(count) if count is not None else None
    before = b.block
    with b.if_then(b.icmp_signed("!=", panel, body.const(0))):
        old = body.masked_load(goes, mask) if mask is not None else b.load(goes, typ=module.vector, align=4)
        added = b.fadd(total, old)
        inside = b.block
    result = b.phi(module.vector)
    result.add_incoming(total, before)
    result.add_incoming(added, inside)
    if mask is not None:
        body.masked_store(result, goes, mask)
    else:
        b.store(result, goes, align=4)
