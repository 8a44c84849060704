"""Block functions: machine code for a block of output rows over any number of vectors of positions.

    void block(float *input, float *output, float *stream, Position *positions, int64 count, float *residual)

Each turn of its only loop keeps one vector of every row of the block in registers: they start as the bias,
every column that any of the rows uses is loaded once and multiplied into the rows that use it, and they
leave through residual, clamp and a masked store. The stream holds what a turn reads in the order of use:

    stream = low, high, 6 unused, 8 bit values (AVX2's masks), weight [non-zeros], bias [rows]
    positions = int32 [vectors, 4]: input offset, output offset, mask bits, offset of an output worth fetching
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from sparsify.engine.encode import R10, RAX, RBP, RBX, RETURN, Encoder, again, fetch, four, put, soon
from sparsify.engine.ir import I64, POINTER
from sparsify.engine.program import Epilogue

TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER, I64, POINTER])
STREAM_HEAD = 16  # floats before the bias
_LINE = 64  # bytes
_FURTHER = 32 << 10  # bytes: about two strips
_LOCATE = bytes.fromhex("4863014801f84c6351044901f2")  # rax = input, r10 = output + the table's offsets
_AHEAD = bytes.fromhex("4863410c4801f0")  # rax = output + the offset that the table has for fetching
_RESIDUAL = bytes.fromhex("486341044c01c8")  # rax = residual + the table's output offset
_SAVE, _RESTORE = b"\x53\x55", b"\x5d\x5b"  # rbx and rbp
_NEXT = bytes.fromhex("4883c11049ffc8")  # next position, one fewer to go


@dataclass(frozen=True, eq=False)
class Rows:
    """A block's share of the non-zeros, in the order of use: by column, then by row."""

    first: int  # the block's first row, counted from the first one of its strip
    count: int
    row: np.ndarray  # int64 [nnz], 0 .. count - 1
    shift: np.ndarray  # int64 [nnz] floats
    value: np.ndarray  # float32 [nnz]


@dataclass(frozen=True)
class Part:
    """Which part of a block's columns a function does: the first one begins at the bias and takes the residual
    in, the others begin where the one before left its sums in the output; the last one clamps."""

    first: bool = True
    last: bool = True


def stream(strip: Sequence[Rows], bias: np.ndarray, epilogue: Epilogue) -> np.ndarray:
    """The stream of one strip: float32, whole cache lines."""
    weights = np.concatenate([block.value for block in strip])
    length = STREAM_HEAD + len(weights) + len(bias)
    floats = np.zeros(-(-length // 16) * 16, np.float32)
    floats[0], floats[1] = epilogue.low, epilogue.high
    floats[8:16] = (1 << np.arange(8)).astype(np.int32).view(np.float32)
    floats[STREAM_HEAD : STREAM_HEAD + len(weights)] = weights
    floats[STREAM_HEAD + len(weights) : length] = bias
    return floats


def straight(
    strip: Sequence[Rows], encoder: Encoder, channel: int, epilogue: Epilogue, part: Part | None = None,
    ahead: bool = False, turns: int = 1, fills: bool = False,
) -> bytes:  # fmt: skip
    """The code of one strip of blocks, or a part of it: at each vector of positions one block comes after the
    other, so that what they read is fetched from the second-level cache once. `channel`: floats from one output
    row's plane to the next; `ahead`: whether outputs are fetched where the table says so; `fills`: whether
    lanes outside the mask are zeros in the output, for which there must be a limit.

    Meanwhile what lies behind its code and its stream, as much as they are long, comes into the second-level cache,
    spread over `turns` vectors: those are the next strip's. A core fetches instructions from further away one line at
    a time, many times slower than it runs them, and more than a few fetches in a row hold it up. As much code that is
    further away is fetched once before, since not every fetch from memory is done in time or at all.
    """
    part = part or Part()
    rest = Epilogue(
        epilogue.residual if part.first else None,
        epilogue.low if part.last else -np.inf,
        epilogue.high if part.last else np.inf,
    )
    body, index = [encoder.turn()], STREAM_HEAD
    bias = STREAM_HEAD + sum(len(block.value) for block in strip)
    length = 4 * (bias + sum(block.count for block in strip))
    sizes = (sum(_length(block, encoder) for block in strip), length)
    lines = [1 + size // (_LINE * turns) for size in sizes]
    code, weights = (np.arange(count) * _LINE for count in lines)
    hints = np.concatenate([soon(RBX, code), soon(RBP, weights), soon(RBX, code + _FURTHER)])
    for block, mine in zip(strip, np.array_split(hints, len(strip)), strict=True):
        accumulators = np.arange(block.count)
        there = (block.first + accumulators) * channel * 4
        body += [
            _AHEAD + fetch(RAX, there).tobytes() if ahead and part.first else b"",
            _LOCATE,
            (
                encoder.constant(accumulators, bias + block.first + accumulators)
                if part.first
                else encoder.load(accumulators, R10, there)
            ).tobytes(),
            _products(block, encoder, index, mine).tobytes(),
            finish(there, encoder, rest, fills and part.last),
        ]
        index += len(block.value)
    return _loop(b"".join(body), length, lines)


def _loop(body: bytes, stream: int, lines: Sequence[int]) -> bytes:
    """A block function whose turns are `body`. rbx begins where its code ends and rbp where its stream, of so many
    bytes, does; each turn moves them on by so many lines."""
    moves = [code + four(count * _LINE) for code, count in zip((b"\x48\x81\xc3", b"\x48\x81\xc5"), lines, strict=True)]
    turn = again(b"".join((body, *moves, _NEXT)))
    begin = b"\x49\x89\xd3" + b"\x48\x8d\xaa" + four(stream) + b"\x48\x8d\x1d" + four(len(turn))
    return _SAVE + begin + turn + _RESTORE + RETURN


def _opens(rows: Rows) -> np.ndarray:
    """Whether a non-zero is its column's first: bool [nnz]."""
    return np.concatenate([[True], rows.shift[1:] != rows.shift[:-1]])[: len(rows.shift)]


def _length(rows: Rows, encoder: Encoder) -> int:
    """Bytes of a block's loads and multiplications."""
    product, load = encoder.fma(0, 0, 0).shape[1], encoder.load(0, RAX, 0).shape[1]
    return len(rows.value) * product + int(_opens(rows).sum()) * load


def _products(rows: Rows, encoder: Encoder, first: int, hints: np.ndarray) -> np.ndarray:
    """Loads, multiplications and steps of the stream pointer, in order, `hints` spread among them: uint8 [bytes]."""
    if not len(rows.value):
        return np.zeros(0, np.uint8)
    opens = _opens(rows)
    inputs = np.array(encoder.inputs)[(np.cumsum(opens) - 1) % len(encoder.inputs)]
    index = first + np.arange(len(rows.value))
    steps = index % encoder.stream_step == 0
    hints = hints[: len(index)]
    hinted = np.zeros(len(index), bool)
    hinted[np.arange(len(hints)) * len(index) // max(1, len(hints))] = True
    loads = encoder.load(inputs[opens], RAX, rows.shift[opens] * 4)
    products = encoder.fma(rows.row, inputs, index)
    step = encoder.advance()
    length, load, move, hint = products.shape[1], loads.shape[1], step.shape[1], hints.shape[1]
    end = np.cumsum(length + load * opens + move * steps + hint * hinted)
    code = np.zeros(end[-1], np.uint8)
    start = end - length
    put(code, start, products)
    put(code, start[opens] - load, loads)
    put(code, (start - load * opens - move)[steps], np.repeat(step, steps.sum(), axis=0))
    put(code, (start - load * opens - move * steps - hint)[hinted], hints)
    return code


def finish(there: np.ndarray, encoder: Encoder, epilogue: Epilogue, fills: bool) -> bytes:
    """Residual, clamp and store of all rows of a block; `there` are the bytes from an output to each of them."""
    registers = np.arange(len(there))
    parts = []
    if epilogue.residual is not None:
        parts += [_RESIDUAL, encoder.add(registers, RAX, there).tobytes()]
    limits = [bound for bound in (("max", epilogue.low, 0), ("min", epilogue.high, 1)) if np.isfinite(bound[1])]
    for kind, _, index in limits:
        clear = fills and index == limits[-1][2]
        parts += [code.tobytes() for code in encoder.limit(kind, registers, index, clear)]
    parts.append(encoder.store(registers, R10, there, fills).tobytes())
    return b"".join(parts)
