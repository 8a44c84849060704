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

_ALONE = 200_000  # multiply-adds of a product that one thread does sooner than two could meet


@dataclass(frozen=True)
class Lanes:
    """How a batch lies in planes [features, pitch]: `panels` panels of `vectors` vectors, the last filled up with 0."""

    batch: int
    vectors: int
    panels: int
    pitch: int


def lanes(batch: int, target: Target) -> Lanes:
    """The fewest panels that hold a batch, and equal ones."""
    total = max(1, -(-batch // target.width))
    panels = -(-total // MOST[target.level])
    vectors = -(-total // panels)
    return Lanes(batch, vectors, panels, panels * vectors * target.width)


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

    def forward(self, x: Tensor, values: Tensor, bias: Tensor, where: Lanes) -> Tensor:
        """W x + bias: planes [in, pitch], [nnz], [out] to planes [out, pitch]."""
        y = x.new_empty(self.pattern.shape[0], where.pitch)
        self._run("forward", where, [x, y, values, bias])
        return y

    def backward(self, x: Tensor, dy: Tensor, values: Tensor, where: Lanes, wants_dx: bool) -> tuple[Tensor, Tensor]:
        """Gradients of the values, [nnz], and of x, planes [in, pitch]; the latter empty unless wanted."""
        dw = values.new_empty(len(values))
        dx = x.new_empty(x.shape if wants_dx else (0,))
        self._run("backward" if wants_dx else "weights", where, [x, dy, values, dw, dx])
        return dw, dx

    def _run(self, name: str, where: Lanes, tensors: list[Tensor]) -> None:
        call = self._calls.get((name, where))
        if call is None:
            call = self._calls[name, where] = _Call(self, name, where, len(tensors))
        call.run(tensors)


class _Call:
    """One product at one batch size: what the threads of a team share."""

    def __init__(self, owner: Products, name: str, where: Lanes, buffers: int) -> None:
        pattern = owner.pattern
        parameters = np.array([pattern.tiles, pattern.blocks, where.panels, where.pitch * 4], np.int64)
        self._constants = np.array([array.ctypes.data for array in (parameters, *owner.arrays)], np.int64)
        self._buffers = np.zeros(buffers, np.int64)
        self._kept = (parameters, owner.arrays)
        function = owner.library.address(f"sparsify_{name}_{where.vectors}")
        pieces = pattern.tiles * where.panels if name == "forward" else pattern.blocks
        self._task = np.array([0, pieces, function, self._buffers.ctypes.data, self._constants.ctypes.data], np.int64)
        self._share = owner.library.address("sparsify_share")
        self._is_small = pattern.count * where.pitch < _ALONE

    def run(self, tensors: list[Tensor]) -> None:
        self._task[0] = 0
        self._buffers[:] = [tensor.data_ptr() for tensor in tensors]
        team.run(self._share, self._task.ctypes.data, 1 if self._is_small else torch.get_num_threads())


def plain(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """x W^T + bias in torch's own operations, [batch, in] to [batch, out]: any dtype and device, slow and large."""
    row, column = (torch.from_numpy(array).to(x.device, torch.int64) for array in (pattern.row(), pattern.columns))
    result = x.new_zeros(len(x), pattern.shape[0]).index_add(1, row, x[:, column] * values)
    return result if bias is None else result + bias
