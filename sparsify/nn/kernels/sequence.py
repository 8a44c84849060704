"""A sparse GRU or LSTM over a whole sequence, one panel of the batch a call: nobody waits for anybody between steps.

In each step the state's product runs over the rows as `sparsify_forward` does for a layer, on planes of this panel
alone that stay in the nearest caches; then each unit's gates are worked out. What a step reads of the inputs' product
and leaves for the backward pass stands in blocks [panels * blocks, rows, pitch]: side by side lie as many steps as
give full vectors to the products that see the whole sequence at once.

The backward pass needs the state's product by the transposed pattern in each step; the weights' gradients are left to
one product over all steps.
"""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import I64, POINTER, Body, Module
from sparsify.nn.kernels._cells import CELLS, GRU, KEPT, LSTM
from sparsify.nn.kernels.products import MOST

NUMBERS = ("steps", "per_block", "blocks", "units", "tiles", "pitch", "outer", "across")


def emit(module: Module) -> None:
    """sparsify_<kind>_forward_<vectors> and sparsify_<kind>_backward_<vectors>."""
    for kind, cell in CELLS.items():
        for vectors in sizes(MOST[module.target.level]):
            _forward(module, kind, cell, vectors)
            _backward(module, kind, cell, vectors)


def sizes(most: int) -> list[int]:
    """Vectors that a panel may have: powers of two, so that whole steps fill a block of `most`."""
    return [vectors for vectors in (1, 2, 4) if vectors <= most]


class _Frame:
    """One panel of one sequence: its numbers, and places in its arrays.

    steps; steps side by side in a block; blocks of a panel; hidden units; tiles of the product; in bytes: from row to
    row in a block, from unit to unit in [units, steps, batch], from step to step there.
    """

    def __init__(self, body: Body, table: ir.Value, panel: ir.Value, vectors: int) -> None:
        self.body, self.panel, self.vectors = body, panel, vectors
        self.steps, self.per_block, self.blocks, self.units, self.tiles, self.pitch, self.outer, self.across = (
            body.numbers(table, len(NUMBERS))
        )
        self.wide = vectors * body.module.width * 4  # bytes of a panel's row

    def block(self, base: ir.Value, rows: int, step: ir.Value) -> ir.Value:
        """Where a step's column begins in the step's block, of rows * units rows."""
        b, body = self.body.builder, self.body
        number = b.add(b.mul(self.panel, self.blocks), b.udiv(step, self.per_block))
        start = b.mul(number, b.mul(b.mul(self.units, body.const(rows)), self.pitch))
        return body.bytes(base, b.add(start, b.mul(b.urem(step, self.per_block), body.const(self.wide))))

    def side(self, base: ir.Value, step: ir.Value) -> ir.Value:
        """Where a step's column of this panel begins in [units, steps, batch]."""
        b, body = self.body.builder, self.body
        return body.bytes(base, b.add(b.mul(step, self.across), b.mul(self.panel, body.const(self.wide))))

    def row(self, base: ir.Value, part: int, unit: ir.Value, pitch: ir.Value | None = None) -> ir.Value:
        """A unit's row in one of the parts of `units` rows each; rows follow each other closely without a pitch."""
        b, body = self.body.builder, self.body
        number = b.add(b.mul(self.units, body.const(part)), unit)
        return body.bytes(base, b.mul(number, pitch or body.const(self.wide)))

    def product(self, arrays: ir.Value, table: ir.Value) -> None:
        """All rows of the state's product. arrays: addresses of x, y, values and bias."""
        body = self.body
        function = body.declared(f"sparsify_forward_{self.vectors}", ir.VoidType(), [POINTER, POINTER, I64])
        with body.loop(0, self.tiles) as tile:
            body.builder.call(function, [arrays, table, tile.index])


def _scratch(frame: _Frame, base: ir.Value, parts: int) -> list[ir.Value]:
    """Planes of this panel alone, `units` rows each."""
    b, body = frame.body.builder, frame.body
    size = b.mul(frame.units, body.const(frame.wide))
    start = body.bytes(base, b.mul(frame.panel, b.mul(size, body.const(parts))))
    return [body.bytes(start, b.mul(size, body.const(i))) for i in range(parts)]


def _arrays(body: Body, values: list[ir.Value]) -> ir.Value:
    room = body.room(POINTER, len(values))
    for number, value in enumerate(values):
        body.store(value, room, number, align=8)
    return room


def _forward(module: Module, kind: str, cell: GRU | LSTM, vectors: int) -> None:
    """void f(buffers, constants, panel): all steps of one panel.

    buffers: kept [KEPT * units rows], whose first rows hold the inputs' product; states before each step [units rows];
    cells before each step [units rows], of an LSTM; states after each step [units, steps, batch]; values and bias of
    the state's product; scratch, whose first planes are state and cell, before and after.  constants: numbers, the
    product's table.
    """
    body = Body(module, f"sparsify_{kind}_forward_{vectors}")
    buffers, constants, panel = body.arguments
    kept, states, cells, out, values, bias, scratch = (body.pointer(buffers, i) for i in range(7))
    frame = _Frame(body, body.pointer(constants, 0), panel, vectors)
    h, c, *z = _scratch(frame, scratch, 2 + cell.gates)
    arrays = _arrays(body, [h, z[0], values, bias])
    with body.loop(0, frame.steps) as step:
        frame.product(arrays, body.pointer(constants, 1))
        places, before = frame.block(kept, KEPT, step.index), frame.block(states, 1, step.index)
        after = frame.side(out, step.index)
        cells_before = frame.block(cells, 1, step.index) if cell.has_cell else None
        with body.loop(0, frame.units) as unit:
            rows = [frame.row(places, part, unit.index, frame.pitch) for part in range(KEPT)]
            sums = [frame.row(part, 0, unit.index) for part in z]
            state, memory = frame.row(h, 0, unit.index), frame.row(c, 0, unit.index)
            for v in range(vectors):
                x = [body.vector(row, v) for row in rows[: cell.gates]]
                old, old_cell = body.vector(state, v), body.vector(memory, v) if cell.has_cell else body.zeros()
                found = cell.forward(body, x, [body.vector(row, v) for row in sums], old, old_cell)
                for value, row in zip(found.kept, rows, strict=True):
                    body.store(value, row, v)
                body.store(old, frame.row(before, 0, unit.index, frame.pitch), v)
                body.store(found.state, state, v)
                body.store(found.state, frame.row(after, 0, unit.index, frame.outer), v)
                if cells_before is not None:
                    body.store(old_cell, frame.row(cells_before, 0, unit.index, frame.pitch), v)
                    body.store(found.cell, memory, v)
    body.done()


def _backward(module: Module, kind: str, cell: GRU | LSTM, vectors: int) -> None:
    """void f(buffers, constants, panel): gradients of all gates' sums, from the last step to the first.

    buffers: kept, states and cells as `_forward` left them; gradients [KEPT * units rows]; gradient of the states after
    each step [units, steps, batch]; values of the transposed product, and zeros [units]; scratch, whose first planes
    are gradients of state and cell, after the last step and then before the first: in a GRU's second ones stands what
    comes to its state without a product.  constants: numbers, the transposed product's table.
    """
    body = Body(module, f"sparsify_{kind}_backward_{vectors}")
    b = body.builder
    buffers, constants, panel = body.arguments
    kept, states, cells, gradients, out, values, zeros, scratch = (body.pointer(buffers, i) for i in range(8))
    frame = _Frame(body, body.pointer(constants, 0), panel, vectors)
    through, carried, *dz = _scratch(frame, scratch, 2 + cell.gates)
    arrays = _arrays(body, [dz[0], through, values, zeros])
    with body.loop(0, frame.steps) as turn:
        step = b.sub(b.sub(frame.steps, body.const(1)), turn.index)
        places, before = frame.block(kept, KEPT, step), frame.block(states, 1, step)
        goes, after = frame.block(gradients, KEPT, step), frame.side(out, step)
        cells_before = frame.block(cells, 1, step) if cell.has_cell else None
        with body.loop(0, frame.units) as unit:
            rows = [frame.row(places, part, unit.index, frame.pitch) for part in range(KEPT)]
            targets = [frame.row(goes, part, unit.index, frame.pitch) for part in range(KEPT)]
            own = [frame.row(part, 0, unit.index) for part in dz]
            product, going = frame.row(through, 0, unit.index), frame.row(carried, 0, unit.index)
            for v in range(vectors):
                h = body.vector(frame.row(before, 0, unit.index, frame.pitch), v)
                c = h
                if cells_before is not None:
                    c = body.vector(frame.row(cells_before, 0, unit.index, frame.pitch), v)
                given = body.vector(frame.row(after, 0, unit.index, frame.outer), v)
                dh = b.fadd(given, body.vector(product, v))
                found = cell.backward(body, [body.vector(row, v) for row in rows], h, c, dh, body.vector(going, v))
                for value, row in zip(found.gradients, targets, strict=True):
                    body.store(value, row, v)
                for value, row in zip(found.gradients[KEPT - cell.gates :], own, strict=True):
                    body.store(value, row, v)
                body.store(found.carried, going, v)
        frame.product(arrays, body.pointer(constants, 1))
    body.done()
