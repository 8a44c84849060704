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

from sparsify.engine.encode import R10, RAX, RBP, RBX, RETURN, Encoder, again, fetch, four, is_near, move, put, soon
from sparsify.engine.ir import I64, POINTER
from sparsify.engine.program import Epilogue

TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER, I64, POINTER])
STREAM_HEAD = 16  # floats before the bias
_LINE = 64  # bytes
_MOVE, _SAVED = 7, 3  # bytes of an instruction that moves rax, and that a near load is shorter by
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
    body = [encoder.turn()]
    *starts, bias = (int(end) for end in np.cumsum([STREAM_HEAD, *(len(block.value) for block in strip)]))
    length = 4 * (bias + sum(block.count for block in strip))
    products = [_products(block, encoder, start) for block, start in zip(strip, starts, strict=True)]
    sizes = (sum(_length(pieces) for pieces in products), length)
    lines = [1 + size // (_LINE * turns) for size in sizes]
    code, weights = (np.arange(count) * _LINE for count in lines)
    hints = np.concatenate([soon(RBX, code), soon(RBP, weights), soon(RBX, code + _FURTHER)])
    for block, pieces, mine in zip(strip, products, np.array_split(hints, len(strip)), strict=True):
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
            _in_order([_spread(mine, len(block.value)), *pieces], len(block.value)),
            finish(there, encoder, rest, fills and part.last),
        ]
    return _loop(b"".join(body), length, lines)


def _loop(body: bytes, stream: int, lines: Sequence[int]) -> bytes:
    """A block function whose turns are `body`. rbx begins where its code ends and rbp where its stream, of so many
    bytes, does; each turn moves them on by so many lines."""
    moves = [code + four(count * _LINE) for code, count in zip((b"\x48\x81\xc3", b"\x48\x81\xc5"), lines, strict=True)]
    turn = again(b"".join((body, *moves, _NEXT)))
    begin = b"\x49\x89\xd3" + b"\x48\x8d\xaa" + four(stream) + b"\x48\x8d\x1d" + four(len(turn))
    return _SAVE + begin + turn + _RESTORE + RETURN


Pieces = list[tuple[np.ndarray, np.ndarray]]  # before which non-zeros, ascending, and instructions of one length


def _products(rows: Rows, encoder: Encoder, first: int) -> Pieces:
    """Steps of the two pointers, loads and multiplications, whose weights begin at `first` in the stream."""
    index = first + np.arange(len(rows.value))
    opens = np.concatenate([[True], rows.shift[1:] != rows.shift[:-1]])[: len(index)]
    column, inputs = np.cumsum(opens) - 1, np.array(encoder.inputs)
    loads, offsets = np.flatnonzero(opens), rows.shift[opens] * 4
    bases = _bases(offsets, encoder)
    moves, offsets = np.diff(bases, prepend=0), offsets - bases
    near = is_near(offsets, encoder.reach)
    pieces = [(np.flatnonzero(index % encoder.stream_step == 0), encoder.advance())]
    pieces += [(loads[moves != 0], move(RAX, moves[moves != 0]))]
    for chosen in (near, ~near):
        registers = inputs[column[loads[chosen]] % len(inputs)]
        pieces += [(loads[chosen], encoder.load(registers, RAX, offsets[chosen]))]
    return [*pieces, (np.arange(len(index)), encoder.fma(rows.row, inputs[column % len(inputs)], index))]


def _bases(offsets: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Where rax points at each of a block's loads, from the vector's input on, so that most of them have a short
    displacement; zeros where moving it takes as many bytes as that saves. `offsets`: bytes, ascending."""
    if not encoder.reach:
        return np.zeros_like(offsets)
    bases = offsets // encoder.reach * encoder.reach + encoder.reach // 2
    saved = _SAVED * np.count_nonzero(is_near(offsets - bases, encoder.reach))
    return bases if saved > _MOVE * len(np.unique(bases)) else np.zeros_like(offsets)


def _length(pieces: Pieces) -> int:
    """Bytes of code."""
    return sum(len(before) * code.shape[1] for before, code in pieces)


def _in_order(pieces: Pieces, count: int) -> bytes:
    """The code of all pieces: before each of `count` non-zeros the first one's instruction, then the next one's."""
    sizes = np.zeros(count, np.int64)
    for before, code in pieces:
        sizes[before] += code.shape[1]
    start = np.cumsum(sizes) - sizes
    whole = np.zeros(int(sizes.sum()), np.uint8)
    for before, code in pieces:
        put(whole, start[before], np.broadcast_to(code, (len(before), code.shape[1])))
        start[before] += code.shape[1]
    return whole.tobytes()


def _spread(hints: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hints among so many non-zeros, at most one before each."""
    hints = hints[:count]
    return np.arange(len(hints)) * count // max(1, len(hints)), hints


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
