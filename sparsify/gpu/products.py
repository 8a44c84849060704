"""Calls of the kernels on tensors."""

from __future__ import annotations

from typing import Literal

import triton
from torch import Tensor

from sparsify.gpu.kernels import matrix_kernel, vector_by_bits_kernel, vector_by_offsets_kernel
from sparsify.gpu.matrix import WIDEST, SparseMatrix

Positions = Literal["offsets", "bits"]
STEP = 16  # non-zeros of a row that the matrix kernel takes at once
MOST_LANES = 128
VECTOR_STEP = 256  # non-zeros, or columns, that the vector kernels take at once


def sparse_times_dense(weight: SparseMatrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """weight [rows, columns] times x [batch, columns, width] -> [batch, rows, width], in x's dtype.

    A 1x1 convolution is this with width = height * width of the image; a linear layer with samples in the width.
    """
    batch, depth, width = x.shape
    rows, columns = weight.shape
    if depth != columns:
        raise ValueError(f"a matrix of {columns} columns cannot be multiplied by {depth} rows")
    x, y = x.contiguous(), x.new_empty(batch, rows, width)
    if y.numel():
        lanes = min(MOST_LANES, triton.next_power_of_2(width))
        grid = (rows, triton.cdiv(width, lanes), batch)
        matrix_kernel[grid](
            y, x, weight.values, weight.columns, weight.starts, weight.order, _bias(bias, weight), rows, width, depth,
            HAS_BIAS=bias is not None, LANES=lanes, STEP=STEP,
        )  # fmt: skip
    return y


def sparse_times_vector(
    weight: SparseMatrix, x: Tensor, bias: Tensor | None = None, positions: Positions | None = None
) -> Tensor:
    """weight [rows, columns] times x [columns] -> [rows], in x's dtype.

    positions: which form of the positions is read; by default the smaller one: bits cost 1/8 byte a column, offsets 2
    bytes (4 where there are more than 65,536 columns) a non-zero.
    """
    rows, columns = weight.shape
    if x.shape != (columns,):
        raise ValueError(f"a matrix of {columns} columns cannot be multiplied by a vector of shape {tuple(x.shape)}")
    if positions is None:
        size = 2 if columns <= WIDEST else 4
        positions = "bits" if rows * columns <= 8 * size * len(weight.values) else "offsets"
    x, y = x.contiguous(), x.new_empty(rows)
    if rows == 0:
        return y
    given = _bias(bias, weight)
    if positions == "bits":
        words = weight.bits.shape[1]
        vector_by_bits_kernel[(rows,)](
            y, x, weight.values, weight.bits, weight.starts, given, words, columns,
            HAS_BIAS=bias is not None, WORDS=VECTOR_STEP // 32,
        )  # fmt: skip
    else:
        vector_by_offsets_kernel[(rows,)](
            y, x, weight.values, weight.columns, weight.starts, given, HAS_BIAS=bias is not None, STEP=VECTOR_STEP
        )
    return y


def _bias(bias: Tensor | None, weight: SparseMatrix) -> Tensor:
    return weight.values if bias is None else bias  # never read without one, but a pointer is wanted
