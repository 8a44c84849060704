"""Calls of the native products of `kernels/products.py` on torch tensors, float32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.engine.library import library
from sparsify.engine.target import Target, host
from sparsify.nn import kernels, team
from sparsify.nn.kernels.products import MOST
from sparsify.nn.pattern import Pattern

_PIECES = 8  # that the weights' gradient is shared out in at least, by tiles of rows where blocks are fewer
_ALONE = 200_000  # multiply-adds of a product that one thread does sooner than two could meet


@dataclass(frozen=True)
class Lanes:
    """How a batch lies in planes [features, pitch]: `panels` panels of `vectors` vectors, the last filled up with 0.

    Panels are side by side in the same planes, or each has planes of its own; all sizes are in floats.
    """

    batch: int
    vectors: int
    panels: int
    pitch: int
    input_step: int  # from one panel of the inputs to the next
    output_step: int  # from one panel of the outputs to the next


def lanes(batch: int, target: Target) -> Lanes:
    """The fewest panels that hold a batch, and equal ones."""
    total = max(1, -(-batch // target.width))
    panels = -(-total // MOST[target.level])
    vectors = -(-total // panels)
    wide = vectors * target.width
    return Lanes(batch, vectors, panels, panels * wide, wide, wide)


def planes(x: Tensor, where: Lanes) -> Tensor:
    """[batch, features] as planes [features, pitch]; not copied where it is the transpose of planes already."""
    batch, features = x.shape
    if where.pitch == batch and x.stride() == (1, batch):
        return x.t()
    result = x.new_empty(features, where.pitch)
    result[:, :batch] = x.t()
    result[:, batch:] = 0
    return result


class Products:
    """The three products on one pattern. Keeps no activations; may be used by one thread at a time."""

    def __init__(self, pattern: Pattern, target: Target | None = None) -> None:
        self.pattern, self.target = pattern, target or host()
        self.library = library(self.target, kernels)
        arrays = (pattern.bounds, pattern.rows, pattern.firsts, pattern.columns, pattern.row_starts,
                  pattern.column_starts)  # fmt: skip
        self.arrays = [np.ascontiguousarray(array) for array in arrays]
        self._calls: dict[tuple[str, Lanes], _Call] = {}
        self._tables: dict[tuple[Lanes, int], tuple[np.ndarray, np.ndarray]] = {}

    def forward(self, x: Tensor, values: Tensor, bias: Tensor, where: Lanes) -> Tensor:
        """W x + bias: planes [in, pitch], [nnz], [out] to planes [out, pitch]."""
        y = x.new_empty(self.pattern.shape[0], where.pitch)
        self.run("forward", where, [x, y, values, bias])
        return y

    def backward(self, x: Tensor, dy: Tensor, values: Tensor, where: Lanes, wants_dx: bool) -> tuple[Tensor, Tensor]:
        """Gradients of the values, [nnz], and of x, planes [in, pitch]; the latter empty unless wanted."""
        dw = values.new_empty(len(values))
        dx = x.new_empty(x.shape if wants_dx else (0,))
        self.run("backward" if wants_dx else "weights", where, [x, dy, values, dw, dx])
        return dw, dx

    def table(self, where: Lanes, tiles: int | None = None) -> np.ndarray:
        """Addresses of sizes and index arrays, int64, as native functions read them; valid as long as this lives.

        tiles: that make up a piece of the weights' gradient.
        """
        key = where, tiles or self.pattern.tiles
        if key not in self._tables:
            sizes = [4 * size for size in (where.pitch, where.input_step, where.output_step)]
            parameters = np.array([key[1], self.pattern.blocks, where.panels, *sizes], np.int64)
            addresses = np.array([array.ctypes.data for array in (parameters, *self.arrays)], np.int64)
            self._tables[key] = addresses, parameters
        return self._tables[key][0]

    def run(self, name: str, where: Lanes, tensors: list[Tensor]) -> None:
        """One of the native functions on its buffers, wherever they lie."""
        call = self._calls.get((name, where))
        if call is None:
            call = self._calls[name, where] = _Call(self, name, where, len(tensors))
        call.run(tensors)


class _Call:
    """One product at one batch size: what the threads of a team share."""

    def __init__(self, owner: Products, name: str, where: Lanes, buffers: int) -> None:
        pattern, tiles = owner.pattern, owner.pattern.tiles
        while name == "weights" and pattern.blocks * pattern.tiles < _PIECES * tiles and tiles % 2 == 0:
            tiles //= 2
        self._constants, self._buffers = owner.table(where, tiles), np.zeros(buffers, np.int64)
        function = owner.library.address(f"sparsify_{name}_{where.vectors}")
        shares = pattern.tiles // tiles  # of a block; only `weights` knows more than one
        pieces = pattern.tiles * where.panels if name == "forward" else pattern.blocks * shares
        self._task = np.array([0, pieces, function, self._buffers.ctypes.data, self._constants.ctypes.data], np.int64)
        self._share = owner.library.address("sparsify_share")
        self._is_small = pattern.count * where.batch < _ALONE

    def run(self, tensors: list[Tensor]) -> None:
        self._task[0] = 0
        self._buffers[:] = [tensor.data_ptr() for tensor in tensors]
        team.run(self._share, self._task.ctypes.data, 1 if self._is_small else torch.get_num_threads())


def plain(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """x W^T + bias in torch's own operations, [batch, in] to [batch, out]: any dtype and device, slow and large."""
    row, column = (torch.from_numpy(array).to(x.device, torch.int64) for array in (pattern.row(), pattern.columns))
    result = x.new_zeros(len(x), pattern.shape[0]).index_add(1, row, x[:, column] * values)
    return result if bias is None else result + bias
