"""A sparse matrix as the GPU's kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32  # columns in a word of the bitmask
WIDEST = 1 << 16  # columns that 16 bits can number


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """[rows, columns] by rows: values, the columns they stand in, and the same places as bits.

    The order of rows is by falling count, so that the longest start first and threads that run together end together
    (Gale et al. 2020, section V.C).
    """

    shape: tuple[int, int]
    values: Tensor  # [nnz] float32 or bfloat16
    columns: Tensor  # [nnz] int16, to be read without sign, or int32 for matrices wider than 65,536
    starts: Tensor  # [rows + 1] int32: where the values of each row begin
    bits: Tensor  # [rows, ceil(columns / 32)] int32, the lowest bit first
    order: Tensor  # [rows] int32: a permutation


def sparse_matrix(dense: Tensor) -> SparseMatrix:
    """The matrix of a dense one, [rows, columns] float32 or bfloat16, on its device. Zeros are left out."""
    rows, columns = dense.shape
    mask = dense != 0
    counts = mask.sum(1)
    narrow = torch.int16 if columns <= WIDEST else torch.int32
    padded = torch.nn.functional.pad(mask, (0, -columns % WORD)).view(rows, -1, WORD)
    weights = 1 << torch.arange(WORD, device=dense.device, dtype=torch.int64)
    return SparseMatrix(
        shape=(rows, columns),
        values=dense[mask].contiguous(),
        columns=mask.nonzero()[:, 1].to(narrow).contiguous(),
        starts=torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32),
        bits=(padded * weights).sum(2).to(torch.int32).contiguous(),
        order=counts.argsort(descending=True, stable=True).to(torch.int32),
    )
