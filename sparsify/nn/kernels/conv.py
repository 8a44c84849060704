"""Walks of the functions of `nn/conv_code.py` over the positions of an image.

Code is fetched before it is run: by itself a core fetches instructions from memory one line at a time. In `products`
the planes of the next tile are fetched too, some with every function, so that never too many are on the way.
"""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import F32, I64, POINTER, Body, Module
from sparsify.engine.memory import LINE
from sparsify.nn.kernels._reduce import transposed_sums

_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER, I64])


def emit(module: Module) -> None:
    """sparsify_conv_sums and sparsify_conv_products."""
    _sums(module)
    _products(module)


def _sums(module: Module) -> None:
    """void f(buffers, constants, piece): one chunk of positions, tile by tile, each by all functions in turn.

    buffers: x, y, stream, and what is added to y or 0.  constants: parameters (functions, tiles, tiles of a chunk,
    bytes of a position of y, of its sources), records, sources, code, tiles (first position, positions).
    """
    body = Body(module, "sparsify_conv_sums")
    b = body.builder
    buffers, constants, chunk = body.arguments
    x, y, stream, added = (body.pointer(buffers, i) for i in range(4))
    parameters, records, sources, code, tiles = (body.pointer(constants, i) for i in range(5))
    functions, all_tiles, chunked, step, row = body.numbers(parameters, 5)
    begin = b.mul(chunk, chunked)
    end = body.smaller(all_tiles, b.add(begin, chunked))
    with body.loop(begin, end) as tile:
        first, count = body.numbers(body.at(tiles, b.mul(tile.index, body.const(2)), I64), 2)
        here, table = body.bytes(y, b.mul(first, step)), body.bytes(sources, b.mul(first, row))
        with body.loop(0, functions) as function:
            record = body.at(records, b.mul(function.index, body.const(5)), I64)
            code_at, size, stream_at, length, plane_at = body.numbers(record, 5)
            _fetch(body, body.bytes(code, code_at), size)
            _fetch(body, body.bytes(stream, stream_at), length)
            arguments = [x, body.bytes(here, plane_at), body.bytes(stream, stream_at), table, count]
            body.call(body.bytes(code, code_at), _TYPE, arguments)
        with b.if_then(b.icmp_unsigned("!=", b.ptrtoint(added, I64), body.const(0))):
            there = body.bytes(added, b.mul(first, step))
            with body.loop(0, b.udiv(b.mul(count, step), body.const(4 * module.width))) as vector:
                total = b.fadd(body.vector(here, vector.index), body.vector(there, vector.index))
                body.store(total, here, vector.index)
    body.done()


def _products(module: Module) -> None:
    """void f(buffers, constants, piece): one chunk of positions, tile by tile, each by a share of the functions.

    buffers: x, dy, sums [chunks, nnz, lanes], dw [chunks, nnz]; what these begin with does not matter.  constants:
    parameters as above, with the non-zeros, those before the first function, the number of shares, and 1 where the
    next tile is fetched while one is worked on or 0 behind them;
    records, sources, code, tiles; shares, where each share's functions begin; starts, where a function's non-zeros do.
    """
    body = Body(module, "sparsify_conv_products")
    b, wide = body.builder, module.width
    buffers, constants, piece = body.arguments
    x, dy, sums, dw = (body.pointer(buffers, i) for i in range(4))
    parameters, records, sources, code, tiles, shares, starts = (body.pointer(constants, i) for i in range(7))
    _, all_tiles, chunked, step, row, nonzeros, before, count_shares, fetches = body.numbers(parameters, 9)
    chunk, share = b.udiv(piece, count_shares), b.urem(piece, count_shares)
    edges = [body.load(shares, b.add(share, body.const(i)), I64, align=8) for i in (0, 1)]
    begin = b.mul(chunk, chunked)
    end = body.smaller(all_tiles, b.add(begin, chunked))
    place = b.sub(b.mul(chunk, nonzeros), before)  # of the first of all non-zeros, were they all there
    own = body.at(sums, place, module.vector)
    first, last = (body.load(starts, edge, I64, align=8) for edge in edges)
    with body.loop(first, last) as entry:
        b.store(body.zeros(), body.at(own, entry.index, module.vector), align=4)
    with body.loop(*edges) as function:
        code_at, length = body.numbers(body.at(records, b.mul(function.index, body.const(5)), I64), 2)
        _fetch(body, body.bytes(code, code_at), length)
    with body.loop(begin, end) as tile:
        position, count = body.numbers(body.at(tiles, b.mul(tile.index, body.const(2)), I64), 2)
        here, table = body.bytes(dy, b.mul(position, step)), body.bytes(sources, b.mul(position, row))
        later = body.smaller(b.add(tile.index, body.const(1)), b.sub(end, body.const(1)))
        following = body.load(tiles, b.mul(later, body.const(2)), I64, align=8)
        tap = b.sub(b.mul(b.add(following, body.const(1)), row), body.const(8))  # the last, whose row is new
        ahead = body.bytes(x, body.at_least(body.load(body.bytes(sources, tap), 0, I64, align=8), 0))
        beside = body.bytes(dy, b.mul(following, step))
        each = body.at_least(b.mul(b.sub(edges[1], edges[0]), body.const(LINE)), LINE)
        lines = b.mul(b.add(b.udiv(step, each), body.const(1)), fetches)  # of each function
        with body.loop(*edges) as function:
            begun = b.mul(b.sub(function.index, edges[0]), lines)
            with body.loop(begun, b.add(begun, lines)) as line:
                for plane in (ahead, beside):
                    body.prefetch(body.bytes(plane, b.mul(line.index, body.const(LINE))), 1)
            code_at, _, sums_at = body.numbers(body.at(records, b.mul(function.index, body.const(5)), I64), 3)
            body.call(body.bytes(code, code_at), _TYPE, [x, here, body.bytes(own, sums_at), table, count])
    with body.loop(first, last, wide) as group:
        left = b.sub(last, group.index)
        numbers = [body.smaller(body.const(i), b.sub(left, body.const(1))) for i in range(wide)]
        places = [body.at(own, b.add(group.index, number), module.vector) for number in numbers]
        total = transposed_sums(b, [b.load(p, typ=module.vector, align=4) for p in places])
        body.masked_store(total, body.at(dw, b.add(place, group.index), F32), body.first_lanes(left))
    body.done()


def _fetch(body: Body, place: ir.Value, size: ir.Value) -> None:
    """Bring bytes into the second-level cache."""
    with body.loop(0, size, 64) as line:
        body.prefetch(body.bytes(place, line.index), 2)
