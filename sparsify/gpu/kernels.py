"""The products themselves. Sums are float32, whatever the values are.

Who has no GPU can run them in Triton's interpreter: TRITON_INTERPRET=1 in the environment before the first import.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _column(columns, at, live):
    """Column numbers as int32; those of 16 bits have no sign."""
    found = tl.load(columns + at, mask=live, other=0)
    return found.to(tl.int32) & 0xFFFF if found.dtype == tl.int16 else found


@triton.jit
def matrix_kernel(
    y, x, values, columns, starts, order, bias, rows, width, depth,
    HAS_BIAS: tl.constexpr, LANES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """y[b, row, :] = bias[row] + sum over the row's non-zeros of value * x[b, column, :].

    x [batch, depth, width], y [batch, rows, width], both contiguous. One program for a row, LANES of the width and a
    sample; STEP non-zeros at a time.
    """
    row = tl.load(order + tl.program_id(0))
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    sample = tl.program_id(2).to(tl.int64)
    inside = lanes < width
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    total = tl.zeros([LANES], tl.float32)
    for k in range(first, last, STEP):
        at = k + tl.arange(0, STEP)
        live = at < last
        column = _column(columns, at, live)
        value = tl.load(values + at, mask=live, other=0).to(tl.float32)
        where = sample * depth * width + column[:, None].to(tl.int64) * width + lanes[None, :]
        part = tl.load(x + where, mask=live[:, None] & inside[None, :], other=0).to(tl.float32)
        total += tl.sum(value[:, None] * part, axis=0)
    if HAS_BIAS:
        total += tl.load(bias + row).to(tl.float32)
    where = (sample * rows + row) * width + lanes
    tl.store(y + where, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def vector_by_offsets_kernel(
    y, x, values, columns, starts, bias, HAS_BIAS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """y[row] = bias[row] + sum of value * x[column]; 16-bit columns. One program for a row."""
    row = tl.program_id(0)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    total = tl.zeros([STEP], tl.float32)
    for k in range(first, last, STEP):
        at = k + tl.arange(0, STEP)
        live = at < last
        value = tl.load(values + at, mask=live, other=0).to(tl.float32)
        total += value * tl.load(x + _column(columns, at, live), mask=live, other=0).to(tl.float32)
    result = tl.sum(total, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(y + row, result.to(y.dtype.element_ty))


@triton.jit
def vector_by_bits_kernel(
    y, x, values, bits, starts, bias, words, depth, HAS_BIAS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """y[row] = bias[row] + sum of value * x[column]; one bit for each column. One program for a row.

    WORDS words of 32 columns at a time: a value's place is the count of bits before its own.
    """
    row = tl.program_id(0)
    at = tl.load(starts + row)
    total = tl.zeros([WORDS * 32], tl.float32)
    for block in range(0, words, WORDS):
        word = block + tl.arange(0, WORDS)
        found = tl.load(bits + row * words + word, mask=word < words, other=0)
        live = tl.reshape((found[:, None] >> tl.arange(0, 32)[None, :]) & 1, [WORDS * 32])
        place = at + tl.cumsum(live, axis=0) - live
        column = block * 32 + tl.arange(0, WORDS * 32)
        value = tl.load(values + place, mask=live != 0, other=0).to(tl.float32)
        total += value * tl.load(x + column, mask=(live != 0) & (column < depth), other=0).to(tl.float32)
        at += tl.sum(live, axis=0)
    result = tl.sum(total, axis=0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(y + row, result.to(y.dtype.element_ty))
