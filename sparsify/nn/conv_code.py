"""Machine code of a sparse convolution's products: every non-zero is an instruction, its value is data.

Activations are planes [height, width, channels, pitch]: the batch in the lanes, the channels of a position side by
side. A tap of the kernel is then one number for each position: how many bytes from the first input its channels
lie, or -1 where it falls outside the image. Two kinds of functions:

    sums      y[p, o] = bias[o] + sum_j value[j] * x[source[p, tap_j], column_j]     forward, and the input gradient
    products  dw[j] += sum_p dy[p, row_j] . x[source[p, tap_j], column_j]            weight gradient (SDDMM)

both for some positions in a row (System V): rdi x, rsi y, rdx stream or sums, rcx sources, r8 positions. Temporaries
are rax, r9, r10 and r11. Source of the idea: `engine/kernels/straight.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.engine.encode import R10, RAX, RDX, RETURN, Encoder, again, beside, changes, fetch, four, fours, put, soon

_PART = 2048  # non-zeros of a function at most: its code stays in the first-level cache from one vector to the next
_NEAR = 32  # planes of a position that products reads over and over: they stay in the first-level cache
_RSI = 6
_ADD_RAX_RDI = b"\x48\x01\xf8"
_R11_RDX = b"\x49\x89\xd3"  # mov r11, rdx
_SOURCE = b"\x48\x8b\x81"  # mov rax, [rcx + number]
_SKIP = b"\x48\x85\xc0\x0f\x88"  # test rax, rax; js number
_NEXT_SOURCES = b"\x48\x81\xc1"  # add rcx, number
_NEXT_OUTPUT = b"\x48\x81\xc6"  # add rsi, number


@dataclass(frozen=True, eq=False)
class Entries:
    """Non-zeros of a convolution as one of its products sees them: int64 [nnz] each, in the order of the values."""

    row: np.ndarray  # the channel that is written, or that products has dy of
    column: np.ndarray  # the channel that is read
    tap: np.ndarray
    rows: int
    columns: int
    taps: int

    def order(self, block: np.ndarray) -> np.ndarray:
        """By block, tap, column and row."""
        key = ((block * self.taps + self.tap) * self.columns + self.column) * self.rows + self.row
        return np.argsort(key, kind="stable")


@dataclass(frozen=True, eq=False)
class Program:
    """The functions of one product at one pitch.

    gather: int64; where each float of the stream comes from, a value's number, or nnz + row for a bias; of products,
    the value that each sum belongs to. records: int64 [functions, 5], in bytes: where its code begins, and its
    length; where its part of the stream or the sums begins, and its length; where its first row is in a position of y.
    """

    code: bytes
    gather: np.ndarray
    records: np.ndarray


@dataclass(frozen=True, eq=False)
class Ahead:
    """What functions fetch long before it is read or written, in bytes from where they work."""

    inputs: np.ndarray  # int64 [taps]: from each tap's input to channels that will be read first
    output: int


def sums(entries: Entries, pitch: int, encoder: Encoder, ahead: Ahead | None = None) -> Program:
    """Functions that each write a block of rows, or add some of its columns to it. pitch: floats of a plane."""
    block = entries.row // encoder.rows
    order = entries.order(block)
    starts = np.arange(0, entries.rows, encoder.rows)
    edges = np.searchsorted(block[order], np.arange(len(starts) + 1))
    pieces, gather, records, length, floats = [], [], [], 0, 0
    for start, a, b in zip(starts.tolist(), edges[:-1], edges[1:], strict=True):
        height = min(encoder.rows, entries.rows - start)
        for number, chosen in enumerate(np.array_split(order[a:b], max(1, -(-(b - a) // _PART)))):
            lines = _lines(entries, start, height, pitch * 4, ahead) if ahead and number == 0 else None
            text = _sum(entries, chosen, start, height, number == 0, pitch, encoder, lines)
            biases = len(entries.row) + start + np.arange(height if number == 0 else 0)
            stream = np.concatenate([biases, chosen])
            stream = np.concatenate([stream, np.zeros(-len(stream) % 16, np.int64)])
            records.append((length, len(text), floats * 4, len(stream) * 4, start * pitch * 4))
            pieces.append(text)
            gather.append(stream)
            length += len(text)
            floats += len(stream)
    return Program(b"".join(pieces), np.concatenate(gather), np.array(records, np.int64))


def _sum(
    entries: Entries, chosen: np.ndarray, start: int, height: int, first: bool, pitch: int, encoder: Encoder,
    lines: np.ndarray | None,
) -> bytes:  # fmt: skip
    """One function: rows start to start + height; the `first` of them begins at the bias, others where y stands."""
    plane, vector, registers = pitch * 4, encoder.width * 4, np.arange(height)
    if first:
        begin = encoder.constant(registers, registers).tobytes()
    else:
        begin = encoder.load(registers, _RSI, registers * plane).tobytes()
    body = begin + _taps(entries, chosen, start, height if first else 0, plane, encoder, lines)
    body += encoder.store(registers, _RSI, registers * plane).tobytes()
    body += b"\x48\x83\xc7" + bytes([vector]) + b"\x48\x83\xc6" + bytes([vector])  # add rdi, vector; add rsi, vector
    position = b"\x41\xba" + four(pitch // encoder.width) + again(body + b"\x49\xff\xca")  # r10: vectors left
    position += b"\x48\x81\xef" + four(plane) + _NEXT_OUTPUT + four((entries.rows - 1) * plane)  # sub rdi, plane
    position += _NEXT_SOURCES + four(entries.taps * 8) + b"\x49\xff\xc8"  # dec r8
    text = encoder.everywhere() + _R11_RDX + again(position) + RETURN
    return text + b"\xcc" * (-len(text) % 64)


def _lines(entries: Entries, start: int, height: int, plane: int, ahead: Ahead) -> np.ndarray:
    """Instructions that fetch the lines ahead of a vector, shared out over the taps: uint8 [taps, bytes].

    Those of the input are left to the first block of rows.
    """
    taps = np.arange(entries.taps)[:, None]
    rows = np.minimum(taps + entries.taps * np.arange(-(-height // entries.taps)), height - 1)
    hints = fetch(_RSI, (rows * plane + ahead.output).ravel()).reshape(entries.taps, -1)
    if start:
        return hints
    columns = np.minimum(taps + entries.taps * np.arange(-(-entries.columns // entries.taps)), entries.columns - 1)
    inputs = soon(RAX, (columns * plane + ahead.inputs[:, None]).ravel(), 1).reshape(entries.taps, -1)
    return np.concatenate([hints, inputs], axis=1)


def _taps(
    entries: Entries, chosen: np.ndarray, start: int, head: int, plane: int, encoder: Encoder,
    lines: np.ndarray | None = None,
) -> bytes:  # fmt: skip
    """Loads and multiplications, tap by tap; taps outside the image are jumped over. head: floats before the values."""
    if not len(chosen):
        return b""
    row, column, tap = entries.row[chosen] - start, entries.column[chosen], entries.tap[chosen]
    fresh = changes(tap)
    opens = fresh | changes(column)
    firsts = np.flatnonzero(fresh)
    index = head + np.arange(len(row))  # in the stream
    steps = (index % encoder.stream_step == 0) & ~fresh
    input = encoder.input
    loads = encoder.load(np.full(opens.sum(), input), RAX, column[opens] * plane)
    products = encoder.fma(row, np.full(len(row), input), index)
    step = np.repeat(encoder.advance(), steps.sum(), axis=0)
    stream = fours(index[firsts] // encoder.stream_step * encoder.stream_step * 4 + encoder.middle)
    parts: list[bytes | np.ndarray] = [
        _SOURCE,
        fours(tap[firsts] * 8),
        _SKIP,
        fours(tap[firsts]),
        _ADD_RAX_RDI,
        b"\x49\x8d\x93",  # lea rdx, [r11 + number]
        stream,
    ]
    if lines is not None:
        parts.append(lines[tap[firsts]])
    headers = beside(len(firsts), *parts)
    sizes = (
        products.shape[1] + loads.shape[1] * opens + step.shape[1] * steps + headers.shape[1] * fresh
    )  # bytes of each non-zero
    ends = np.cumsum(sizes)
    heads = (ends - sizes)[firsts]
    skip = len(_SOURCE) + 4 + len(_SKIP)
    headers[:, skip : skip + 4] = fours(np.append(heads[1:], ends[-1]) - heads - skip - 4)
    code = np.zeros(ends[-1], np.uint8)
    at = ends - products.shape[1]
    put(code, at, products)
    put(code, at[opens] - loads.shape[1], loads)
    put(code, (at - loads.shape[1] * opens - step.shape[1])[steps], step)
    put(code, heads, headers)
    return code.tobytes()


def products(entries: Entries, pitch: int, encoder: Encoder) -> Program:
    """Functions that each add to the sums of as many non-zeros of one tap as fit registers; there must be some.

    A column's input is loaded once for the rows that use it; the rows' gradients, few and near, are read from memory.
    """
    block = entries.row // _NEAR
    order = entries.order(block)
    row, column, tap = entries.row[order], entries.column[order], entries.tap[order]
    plane, vector = pitch * 4, encoder.width * 4
    firsts = np.flatnonzero(changes(block[order] * entries.taps + tap))
    lasts = np.append(firsts[1:], len(order))
    cuts = [np.linspace(a, b, -(-(b - a) // encoder.rows) + 1)[:-1] for a, b in zip(firsts, lasts, strict=True)]
    begins = np.concatenate(cuts).astype(np.int64)
    counts = np.diff(begins, append=len(order))
    opens = changes(column)
    opens[begins] = True
    register = np.arange(len(order)) - np.repeat(begins, counts)
    input = encoder.input
    loads = encoder.load(np.full(opens.sum(), input), RAX, column[opens] * plane)
    each = encoder.fma_memory(register, np.full(len(order), input), R10, row * plane)
    enter = encoder.load(register, RDX, register * vector)
    leave = encoder.store(register, RDX, register * vector)

    inner = each.shape[1] * counts + loads.shape[1] * _totals(opens, begins)  # bytes of the innermost loop's work
    ahead = [_ADD_RAX_RDI, b"\x49\x89\xf2\x41\xb9" + four(pitch // encoder.width)]  # mov r10, rsi; r9: vectors left
    # add rax, vector; add r10, vector; dec r9; jnz
    turn = [b"\x48\x83\xc0" + bytes([vector]) + b"\x49\x83\xc2" + bytes([vector]) + b"\x49\xff\xc9\x0f\x85"]
    turn_size, ahead_size = len(turn[0]) + 4, sum(len(part) for part in ahead)
    head = beside(len(begins), _SOURCE, fours(tap[begins] * 8), _SKIP, fours(ahead_size + inner + turn_size), *ahead)
    position = _NEXT_OUTPUT + four(entries.rows * plane) + _NEXT_SOURCES + four(entries.taps * 8)
    position += b"\x49\xff\xc8\x0f\x85"  # dec r8; jnz
    back = head.shape[1] + inner + turn_size + len(position) + 4
    tail = beside(len(begins), *turn, fours(-inner - turn_size), position, fours(-back))

    start = encoder.everywhere()
    sizes = len(start) + enter.shape[1] * counts + head.shape[1] + inner + tail.shape[1] + leave.shape[1] * counts
    sizes = -(-(sizes + len(RETURN)) // 64) * 64
    at = np.cumsum(sizes) - sizes
    code = np.full(sizes.sum(), 0xCC, np.uint8)
    put(code, at, beside(len(begins), start))
    places = at + len(start)
    put(code, np.repeat(places, counts) + register * enter.shape[1], enter)
    places = places + enter.shape[1] * counts
    put(code, places, head)
    places = places + head.shape[1]
    opened = np.cumsum(opens) - np.repeat(np.cumsum(opens)[begins] - 1, counts)  # columns up to here in the function
    fma_at = np.repeat(places, counts) + register * each.shape[1] + opened * loads.shape[1]
    put(code, fma_at, each)
    put(code, fma_at[opens] - loads.shape[1], loads)
    places = places + inner
    put(code, places, tail)
    places = places + tail.shape[1]
    put(code, np.repeat(places, counts) + register * leave.shape[1], leave)
    put(code, places + leave.shape[1] * counts, beside(len(begins), RETURN))
    records = np.stack([at, sizes, begins * vector, counts * vector, np.zeros_like(at)], axis=1)
    return Program(code.tobytes(), order, records)


def _totals(flags: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """How many are set from each beginning to the next."""
    return np.diff(np.append(0, np.cumsum(flags))[np.append(begins, len(flags))])
