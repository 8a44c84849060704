"""Block functions: machine code for some blocks of output rows over any number of vectors of positions.

    void function(float *input, float *output, float *stream, Position *positions, int64 count, float *residual)

Each turn of its only loop does one vector of positions, one block after the other, so that what they read is fetched
from the second-level cache once. A block keeps one vector of each of its rows in registers: they start as the bias,
every column that any of the rows uses is loaded once and multiplied into the rows that use it, and they leave through
residual, clamp and a masked store. The stream holds what a turn reads in the order of use:

    stream = low, high, 6 unused, 8 bit values (AVX2's masks), weight [non-zeros], bias [rows]
    positions = int32 [vectors, 4]: input offset, output offset, mask bits, offset of an output worth fetching

Many functions are written at once, as arrays. Each instruction has a place: one of the non-zeros, or the end of a
block. What is of one kind is one call of the encoder, wherever it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llvmlite import ir

from sparsify.engine.encode import (
    AGAIN,
    R10,
    RAX,
    RBP,
    RBX,
    RETURN,
    Encoder,
    beside,
    changes,
    fetch,
    fours,
    is_near,
    move,
    put,
    soon,
)
from sparsify.engine.ir import I64, POINTER
from sparsify.engine.program import Epilogue

TYPE = ir.FunctionType(ir.VoidType(), [POINTER, POINTER, POINTER, POINTER, I64, POINTER])
STREAM_HEAD = 16  # floats before the weights
_LINE = 64  # bytes
_MOVE, _SAVED = 7, 3  # bytes of an instruction that moves rax, and that a near load is shorter by
_FURTHER = 32 << 10  # bytes: about two strips
_LOCATE = bytes.fromhex("4863014801f84c6351044901f2")  # rax = input, r10 = output + the table's offsets
_AHEAD = bytes.fromhex("4863410c4801f0")  # rax = output + the offset that the table has for fetching
_RESIDUAL = bytes.fromhex("486341044c01c8")  # rax = residual + the table's output offset
_BEGIN = bytes.fromhex("53554989d3")  # rbx and rbp are saved, r11 = stream
_STREAM_END, _CODE_END = bytes.fromhex("488daa"), bytes.fromhex("488d1d")  # rbp = stream, rbx = here + a distance
_CODE_ON, _STREAM_ON = bytes.fromhex("4881c3"), bytes.fromhex("4881c5")  # rbx, rbp += a distance
_NEXT = bytes.fromhex("4883c11049ffc8")  # next position, one fewer to go
_RESTORE = bytes.fromhex("5d5b")  # rbp and rbx


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of rows, or their parts by columns, and which functions do them. A first part begins at the bias and takes
    the residual in, the others where the one before left its sums in the output; a last one clamps."""

    function: np.ndarray  # int64 [blocks], ascending from 0
    first: np.ndarray  # int64 [blocks]: the first row, counted from the function's first one
    rows: np.ndarray  # int64 [blocks]
    begins: np.ndarray  # bool [blocks]: whether it is a first part
    ends: np.ndarray  # bool [blocks]: whether it is a last part
    edges: np.ndarray  # int64 [blocks + 1]: non-zeros before each
    row: np.ndarray  # int64 [nnz]: within the block; non-zeros are sorted by block, column and row
    shift: np.ndarray  # int64 [nnz], floats
    value: np.ndarray  # float32 [nnz]

    @cached_property
    def opening(self) -> np.ndarray:
        """The first block of each function."""
        return np.flatnonzero(changes(self.function))

    def summed(self, numbers: np.ndarray) -> np.ndarray:
        """For each function the sum of its blocks' numbers."""
        return np.add.reduceat(numbers, self.opening)

    @cached_property
    def nonzeros(self) -> np.ndarray:
        """int64 [functions]"""
        return self.summed(np.diff(self.edges))

    @cached_property
    def of(self) -> np.ndarray:
        """The block of each non-zero."""
        return np.repeat(np.arange(len(self.rows)), np.diff(self.edges))

    @property
    def bias(self) -> np.ndarray:
        """Where biases begin in each function's stream, floats."""
        return STREAM_HEAD + self.nonzeros

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """The first place of each block, and its last one."""
        number = np.arange(len(self.rows))
        return self.edges[:-1] + number, self.edges[1:] + number

    @cached_property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """The first place of each function, and its last one."""
        first = self.places[0][self.opening]
        return first, np.append(first[1:], len(self.row) + len(self.rows)) - 1


def streams(blocks: Blocks, start: np.ndarray, bias: np.ndarray, epilogue: Epilogue) -> tuple[np.ndarray, np.ndarray]:
    """The streams of all functions, one after the other in whole cache lines, and where each begins, floats. start:
    the first row of each; bias: float32 of all rows."""
    rows = blocks.summed(blocks.rows)
    length = -(-(blocks.bias + rows) // STREAM_HEAD) * STREAM_HEAD
    begin = np.cumsum(length) - length
    floats = np.zeros(int(length.sum()), np.float32)
    floats[begin], floats[begin + 1] = epilogue.low, epilogue.high
    floats[begin[:, None] + np.arange(8, 16)] = (1 << np.arange(8)).astype(np.int32).view(np.float32)
    floats[_runs(begin + STREAM_HEAD, blocks.nonzeros)] = blocks.value
    floats[_runs(begin + blocks.bias, rows)] = bias[_runs(start, rows)]
    return floats, begin


def _runs(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Numbers that follow on each other: from each `begin` on so many."""
    return np.repeat(begin - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))


Pieces = list[tuple[np.ndarray, np.ndarray]]
"""At which places, ascending, and a row of bytes for each of them; at one place pieces stand as in the list."""

Alike = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Blocks of as many rows that begin and end alike, with the same length of displacements; the numbers of those rows;
and how far each row of each block is from an output, bytes."""


def straight(
    blocks: Blocks, encoder: Encoder, channel: int, epilogue: Epilogue, ahead: bool = False, turns: int = 1,
    fills: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The code of all functions, one after the other in whole cache lines, and where each begins, bytes. `channel`:
    floats from one output row's plane to the next; `ahead`: whether outputs are fetched where the table says so;
    `fills`: whether lanes outside the mask are zeros in the output, for which there must be a limit.

    Meanwhile what lies behind a function's code and stream, as much as they are long, comes into the second-level
    cache, spread over `turns` vectors: those are the next function's. A core fetches instructions from further away one
    line at a time, many times slower than it runs them, and more than a few fetches in a row hold it up. As much code
    that is further away is fetched once before, since not every fetch from memory is done in time or at all.
    """
    products = _products(blocks, encoder)
    length = 4 * (blocks.bias + blocks.summed(blocks.rows))
    lines = [1 + size // (_LINE * turns) for size in (_sizes(products, blocks), length)]
    alike = _alike(blocks, encoder, channel)
    pieces = [*_before(blocks, alike, encoder, ahead), *_hints(blocks, lines), *products]
    pieces += _after(blocks, alike, encoder, epilogue, fills)
    return _in_order(_loops(pieces, blocks, encoder, length, lines), blocks)


def _before(blocks: Blocks, alike: Alike, encoder: Encoder, ahead: bool) -> Pieces:
    """What blocks begin with: biases, or the sums of the part before."""
    bias = blocks.bias[blocks.function] + blocks.first
    pieces = []
    for same, row, there in alike:
        begins, register = blocks.begins[same[0]], np.tile(row, len(same))
        fetches = (_AHEAD, fetch(RAX, there)) if ahead and begins else ()
        if begins:
            sums = encoder.constant(register, (bias[same, None] + row).ravel())
        else:
            sums = encoder.load(register, R10, there)
        pieces.append((blocks.places[0][same], beside(len(same), *fetches, _LOCATE, sums)))
    return pieces


def _after(blocks: Blocks, alike: Alike, encoder: Encoder, epilogue: Epilogue, fills: bool) -> Pieces:
    """What blocks end with: residual, clamp and store."""
    pieces = []
    for same, row, there in alike:
        ends, register, parts = bool(blocks.ends[same[0]]), np.tile(row, len(same)), list[bytes | np.ndarray]()
        if epilogue.residual is not None and blocks.begins[same[0]]:
            parts += [_RESIDUAL, encoder.add(register, RAX, there)]
        limits = [each for each in (("max", epilogue.low, 0), ("min", epilogue.high, 1)) if np.isfinite(each[1])]
        for kind, _, index in limits if ends else ():
            clear = fills and index == limits[-1][2]
            parts += [code.tobytes() for code in encoder.limit(kind, row, index, clear)]
        parts.append(encoder.store(register, R10, there, fills and ends))
        pieces.append((blocks.places[1][same], beside(len(same), *parts)))
    return pieces


def _alike(blocks: Blocks, encoder: Encoder, channel: int) -> Alike:
    """All blocks, in such groups."""
    last = (blocks.first + blocks.rows - 1) * channel * 4
    kinds = np.stack([blocks.rows, blocks.begins, blocks.ends, is_near(last, encoder.reach)])
    found, (different, which) = [], np.unique(kinds, axis=1, return_inverse=True)
    for number, rows in enumerate(different[0]):
        same, row = np.flatnonzero(which.ravel() == number), np.arange(rows)
        found.append((same, row, (blocks.first[same, None] + row).ravel() * channel * 4))
    return found


def _products(blocks: Blocks, encoder: Encoder) -> Pieces:
    """Steps of the two pointers, loads and multiplications."""
    block, place = blocks.of, np.arange(len(blocks.row)) + blocks.of
    index = STREAM_HEAD + np.arange(len(block)) - blocks.edges[blocks.opening][blocks.function[block]]
    opens = changes(block) | changes(blocks.shift)
    step, offsets = index % encoder.stream_step == 0, blocks.shift[opens] * 4
    bases = _bases(offsets, block[opens], encoder)
    moves = np.diff(bases, prepend=0)
    fresh = changes(block[opens])
    moves[fresh] = bases[fresh]
    offsets = offsets - bases
    near, loads, input = is_near(offsets, encoder.reach), place[opens], encoder.input
    pieces = [(place[step], np.repeat(encoder.advance(), np.count_nonzero(step), axis=0))]
    pieces += [(loads[moves != 0], move(RAX, moves[moves != 0]))]
    pieces += [(loads[chosen], encoder.load(input, RAX, offsets[chosen])) for chosen in (near, ~near)]
    return [*pieces, (place, encoder.fma(blocks.row, input, index))]


def _bases(offsets: np.ndarray, block: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Where rax points at each load, from the vector's input on, so that most of a block's have a short displacement;
    zeros where moving it takes as many bytes as that saves. `offsets`: bytes, ascending in each block."""
    if not encoder.reach or not len(offsets):
        return np.zeros_like(offsets)
    bases = offsets // encoder.reach * encoder.reach + encoder.reach // 2
    moved = changes(bases) | changes(block)
    saved = _SAVED * np.bincount(block, is_near(offsets - bases, encoder.reach))
    return np.where((saved > _MOVE * np.bincount(block, moved))[block], bases, 0)


def _hints(blocks: Blocks, lines: list[np.ndarray]) -> Pieces:
    """Fetches of so many lines of code and stream a turn, and of code further on, at most one at a non-zero."""
    wanted = 2 * lines[0] + lines[1]
    members = np.diff(np.append(blocks.opening, len(blocks.rows)))
    number = np.arange(len(blocks.rows)) - blocks.opening[blocks.function]  # of a block in its function
    least, over = (part[blocks.function] for part in np.divmod(wanted, members))
    before, mine = number * least + np.minimum(number, over), least + (number < over)
    count = np.diff(blocks.edges)
    mine = np.minimum(mine, count)
    turn = _runs(np.zeros_like(mine), mine)  # of a hint in its block
    place = np.repeat(blocks.places[0], mine) + turn * np.repeat(count, mine) // np.repeat(np.maximum(mine, 1), mine)
    line, (code, weights) = np.repeat(before, mine) + turn, (np.repeat(each[blocks.function], mine) for each in lines)
    is_weight = (line >= code) & (line < code + weights)
    at = np.where(line < code, line, line - code - weights) * _LINE + np.where(line < code, 0, _FURTHER)
    return [
        (place[~is_weight], soon(RBX, at[~is_weight])),
        (place[is_weight], soon(RBP, (line - code)[is_weight] * _LINE)),
    ]


def _sizes(pieces: Pieces, blocks: Blocks) -> np.ndarray:
    """Bytes of code of each function."""
    return np.add.reduceat(_lengths(pieces, blocks), blocks.spans[0])


def _lengths(pieces: Pieces, blocks: Blocks) -> np.ndarray:
    """Bytes of code at each place."""
    lengths = np.zeros(len(blocks.row) + len(blocks.rows), np.int64)
    for place, code in pieces:
        lengths[place] += code.shape[1]
    return lengths


def _loops(pieces: Pieces, blocks: Blocks, encoder: Encoder, stream: np.ndarray, lines: list[np.ndarray]) -> Pieces:
    """Functions whose turns are these pieces. rbx begins where the code ends and rbp where the stream, of so many
    bytes, does; each turn moves them on by so many lines."""
    count, begin, (first, last) = len(stream), encoder.turn(), blocks.spans
    moves = beside(count, _CODE_ON, fours(lines[0] * _LINE), _STREAM_ON, fours(lines[1] * _LINE), _NEXT, AGAIN)
    turn = len(begin) + _sizes(pieces, blocks) + moves.shape[1] + 4
    head = beside(count, _BEGIN, _STREAM_END, fours(stream), _CODE_END, fours(turn), begin)
    tail = beside(count, moves, fours(-turn), _RESTORE, RETURN)
    return [(first, head), *pieces, (last, tail)]


def _in_order(pieces: Pieces, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The code of all pieces, and where functions begin."""
    lengths, (first, last) = _lengths(pieces, blocks), blocks.spans
    lengths[last] += -np.add.reduceat(lengths, first) % _LINE
    start = np.cumsum(lengths) - lengths
    begin = start[first]
    code = np.full(int(lengths.sum()), 0xCC, np.uint8)
    for place, rows in pieces:
        put(code, start[place], rows)
        start[place] += rows.shape[1]
    return code, begin
