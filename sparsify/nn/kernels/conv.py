"""Walks of the functions of `nn/conv_code.py` over the positions of an image.

Code is fetched before it is run: by itself a core fetches instructions from memory one line at a time.
"""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import I64, POINTER, Body, Module

_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER, I64])


def emit(module: Module) -> None:
    """sparsify_conv_sums and sparsify_conv_products."""
    _sums(module)
    _products(module)


def _sums(module: Module) -> None:
    """void f(buffers, constants, piece): one chunk of positions, tile by tile, each by all functions in turn.

    buffers: x, y, stream.  constants: parameters (functions, tiles, tiles of a chunk, bytes of a position of
    y, of its sources), records, sources, code, tiles (first position, positions).
    """
    body = Body(module, "sparsify_conv_sums")
    b = body.builder
    buffers, constants, chunk = body.arguments
    x, y, stream = (body.pointer(buffers, i) for i in range(3))
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
    body.done()


def _products(module: Module) -> None:
    """void f(buffers, constants, piece): one chunk of positions, tile by tile, each by a share of the functions.

    buffers: x, dy, sums [chunks, bytes of a chunk's].  constants: parameters as above, with the bytes of a chunk's sums
    and the number of shares behind them; records, sources, code, tiles; shares: where each share's functions begin.
    """
    body = Body(module, "sparsify_conv_products")
    b = body.builder
    buffers, constants, piece = body.arguments
    x, dy, sums = (body.pointer(buffers, i) for i in range(3))
    parameters, records, sources, code, tiles, shares = (body.pointer(constants, i) for i in range(6))
    _, all_tiles, chunked, step, row, size, count_shares = body.numbers(parameters, 7)
    chunk, share = b.udiv(piece, count_shares), b.urem(piece, count_shares)
    edges = [body.load(shares, b.add(share, body.const(i)), I64, align=8) for i in (0, 1)]
    begin = b.mul(chunk, chunked)
    end = body.smaller(all_tiles, b.add(begin, chunked))
    own = body.bytes(sums, b.mul(chunk, size))
    with body.loop(*edges) as function:
        code_at, length = body.numbers(body.at(records, b.mul(function.index, body.const(5)), I64), 2)
        _fetch(body, body.bytes(code, code_at), length)
    with body.loop(begin, end) as tile:
        first, count = body.numbers(body.at(tiles, b.mul(tile.index, body.const(2)), I64), 2)
        here, table = body.bytes(dy, b.mul(first, step)), body.bytes(sources, b.mul(first, row))
        with body.loop(*edges) as function:
            code_at, _, sums_at = body.numbers(body.at(records, b.mul(function.index, body.const(5)), I64), 3)
            body.call(body.bytes(code, code_at), _TYPE, [x, here, body.bytes(own, sums_at), table, count])
    body.done()


def _fetch(body: Body, place: ir.Value, size: ir.Value) -> None:
    """Bring bytes into the second-level cache."""
    with body.loop(0, size, 64) as line:
        body.prefetch(body.bytes(place, line.index), 2)
