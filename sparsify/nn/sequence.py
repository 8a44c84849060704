"""One GRU or LSTM layer over a whole sequence, on the non-zeros of its gates: native in float32 on the CPU.

The inputs' products of all steps are one product, the steps follow each other in native code without a word of
Python, and so are the gradients of all weights one product over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsify.engine.target import Target, host
from sparsify.nn import team
from sparsify.nn.blocks import Blocks
from sparsify.nn.kernels._cells import CELLS, KEPT
from sparsify.nn.memory import Pool
from sparsify.nn.pattern import Pattern, arrange
from sparsify.nn.products import Products

_NARROWEST = 256  # columns of a block: a step's few columns of so many rows stay in the first cache
Stacked = tuple[np.ndarray, tuple[int, int]]
"""Flat positions, int64 [nnz], in matrices that stand below each other, and the shape of all, [gates * out, in]."""


@dataclass(frozen=True, eq=False)
class _Together:
    """The matrices of all gates below each other, or their transpose."""

    products: Products
    order: Tensor  # int64 [nnz]: its values are the given ones at these places


class Joined:
    """The products of all gates' connections, of the input and of the state, and of both transposed."""

    def __init__(self, kind: str, input: Stacked, state: Stacked, target: Target | None = None) -> None:
        """Gates stand below each other in the order of `CELLS[kind]`'s inputs and states; positions in any order."""
        self.kind, self.target = kind, target or host()
        self.input, self.state = self._arranged(*input), self._arranged(*state)
        self.input_turned = self._turned(self.input.products.pattern)
        self.state_turned = self._turned(self.state.products.pattern)

    def _turned(self, pattern: Pattern) -> _Together:
        """The transpose; its values are those of the pattern in another order."""
        height, width = pattern.shape
        row, column = np.divmod(pattern.positions(), width)
        return self._arranged(column * height + row, (width, height))

    def _arranged(self, flat: np.ndarray, shape: tuple[int, int]) -> _Together:
        pattern, order = arrange(flat, shape, _NARROWEST)
        return _Together(Products(pattern, self.target), torch.from_numpy(order))


Record = Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Layer:
    """What does not change from batch to batch.

    record: called at the end of a backward pass with what dense gradients are made of, each [rows, all steps]: inputs,
    states before each step, and the gradients of the inputs' and of the states' sums, gates in the cell's order.
    """

    joined: Joined
    hidden: int
    record: Record
    recording: Callable[[], bool]
    pool: Pool


def run_sequence(
    layer: Layer, x: Tensor, weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor],
    h: Tensor | None = None, c: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """States after each step [n, t, hidden] and an LSTM's last cell [n, hidden], of x [n, t, inputs], not empty.

    weights: values beside the positions that `Joined` got, of the input and of the state. biases: [gates * hidden].
    h and c: state and cell before the first step, [n, hidden]; zeros without.
    """
    joined = layer.joined
    ordered = [_Reordered.apply(w, part.order) for w, part in zip(weights, (joined.input, joined.state), strict=True)]
    result: tuple[Tensor, Tensor | None] = _Sequence.apply(x, ordered[0], biases[0], ordered[1], biases[1], h, c, layer)
    return result


class _Reordered(torch.autograd.Function):
    """x[order] of a permutation, whose gradient is one too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return torch.empty_like(dy).index_copy_(0, order, dy), None


class _Sequence(torch.autograd.Function):
    """All steps of all gates. Weights and biases are those of all gates together, of the input and of the state."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_state: Tensor, b_state: Tensor,
        h: Tensor | None, c: Tensor | None, layer: Layer,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        joined, pool, hidden = layer.joined, layer.pool, layer.hidden
        cell, blocks = CELLS[joined.kind], Blocks.of(x.shape[0], x.shape[1], joined.target)
        columns = blocks.pack(x)
        kept, states = blocks.empty(pool, KEPT * hidden), blocks.empty(pool, hidden)
        cells = blocks.empty(pool, hidden) if cell.has_cell else states
        where = blocks.lanes(columns.shape[1], KEPT * hidden)
        joined.input.products.run("forward", where, [columns, kept, w_in.contiguous(), b_in.contiguous()])
        out = pool.empty(hidden, blocks.steps, blocks.batch)
        scratch = blocks.planes(2 + cell.gates, hidden, [h, c])
        buffers = [kept, states, cells, out, w_state.contiguous(), b_state.contiguous(), scratch]
        _run(joined.state.products, f"{joined.kind}_forward", blocks, hidden, buffers)
        ctx.save_for_backward(columns, w_in, w_state, kept, states, cells)
        ctx.layer, ctx.blocks = layer, blocks
        ctx.set_materialize_grads(False)
        return out[:, :, : blocks.count].permute(2, 1, 0), blocks.plane(scratch, 1) if cell.has_cell else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dc: Tensor | None) -> tuple[Tensor | None, ...]:
        columns, w_in, w_state, kept, states, cells = ctx.saved_tensors
        layer, blocks = ctx.layer, ctx.blocks
        joined, pool, hidden = layer.joined, layer.pool, layer.hidden
        cell = CELLS[joined.kind]
        gradients = blocks.empty(pool, KEPT * hidden)
        errors = kept.new_zeros(hidden, blocks.steps, blocks.batch) if dy is None else blocks.beside(dy)
        scratch = blocks.planes(2 + cell.gates, hidden, [None, dc])
        turned = w_state[joined.state_turned.order]
        buffers = [kept, states, cells, gradients, errors, turned, kept.new_zeros(hidden), scratch]
        _run(joined.state_turned.products, f"{joined.kind}_backward", blocks, hidden, buffers)

        rows, first = cell.gates * hidden, (KEPT - cell.gates) * hidden
        of_state = gradients[:, first:]
        dw_state = torch.empty_like(w_state)
        where = blocks.lanes(hidden, KEPT * hidden)
        joined.state.products.run("weights", where, [states, of_state, w_state, dw_state, dw_state])
        dw_in, inputs = torch.empty_like(w_in), columns.shape[1]
        where = blocks.lanes(inputs, KEPT * hidden)
        joined.input.products.run("weights", where, [columns, gradients, w_in, dw_in, dw_in])
        dx = None
        if ctx.needs_input_grad[0]:
            dx, turned = pool.empty(*columns.shape), w_in[joined.input_turned.order]
            where = blocks.lanes(KEPT * hidden, inputs)
            joined.input_turned.products.run("forward", where, [gradients, dx, turned, kept.new_zeros(inputs)])
        if layer.recording():
            found = [part.transpose(0, 1).flatten(1) for part in (columns, states, gradients)]
            layer.record(found[0], found[1], found[2][:rows], found[2][first:])
        db = gradients.sum((0, 2))
        dh = dc = None
        if any(ctx.needs_input_grad[5:7]):
            dh, dc = (blocks.plane(scratch, part) for part in (0, 1))
            dh, dc = (dh, dc) if cell.has_cell else (dh + dc, None)
        dx = None if dx is None else blocks.unpack(dx)
        dh, dc = (d if wanted else None for d, wanted in zip((dh, dc), ctx.needs_input_grad[5:7], strict=True))
        return dx, dw_in, db[:rows], dw_state, db[first:], dh, dc, None


def _run(product: Products, name: str, blocks: Blocks, hidden: int, buffers: Sequence[Tensor]) -> None:
    """One native function over all panels of the batch."""
    numbers = blocks.numbers(hidden, product.pattern.tiles)
    constants = np.array([numbers.ctypes.data, product.table(blocks.step_lanes()).ctypes.data], np.int64)
    addresses = [tensor.data_ptr() for tensor in buffers]
    team.call(product.library, f"sparsify_{name}_{blocks.vectors}", blocks.panels, addresses, constants.ctypes.data)


Sums = Callable[[Tensor], Sequence[Tensor]]  # [n, ...] to the sum of each gate [n, hidden], in torch's order of gates


def plain_sequence(
    kind: str, x: Tensor, of_input: Sums, of_state: Sums, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What `run_sequence` returns in torch's own operations, step by step: any dtype and device, slow and large."""
    found = []
    for step in range(x.shape[1]):
        shares = [of_input(x[:, step]), of_state(h)]
        if kind == "gru":
            (xr, xu, xn), (zr, zu, zn) = shares
            update = torch.sigmoid(xu + zu)
            h = (1 - update) * torch.tanh(xn + torch.sigmoid(xr + zr) * zn) + update * h
        else:
            i, f, g, o = (a + b for a, b in zip(*shares, strict=True))
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        found.append(h)
    out = torch.stack(found, 1) if found else x.new_zeros(x.shape[0], 0, h.shape[1])
    return out, None if kind == "gru" else c
