"""A GRU or LSTM layer whose gates hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsify.architectures._recurrent import GATES, Recurrent
from sparsify.engine.target import Target, host
from sparsify.nn import team
from sparsify.nn.blocks import Blocks
from sparsify.nn.kernels._cells import CELLS, KEPT
from sparsify.nn.linear import SparseLinear
from sparsify.nn.memory import Pool
from sparsify.nn.pattern import Pattern, arrange
from sparsify.nn.products import Products, plain


class SparseRecurrent(nn.Module):
    """What `architectures._recurrent.Recurrent` is for dense gates: [n, t, inputs] to [n, t, hidden], from zeros.

    input and state: a SparseLinear for each gate, by the names that `Recurrent` gives them. On the CPU in float32 the
    inputs' products of all steps are one product, the steps follow each other in native code without a word of
    Python, and so are the gradients of all weights one product over all steps.
    """

    def __init__(self, kind: str, hidden: int, input: nn.ModuleDict, state: nn.ModuleDict) -> None:
        super().__init__()
        self.kind, self.hidden, self.input, self.state = kind, hidden, input, state
        self._joined: tuple[list[Pattern], Joined] | None = None
        self._pool = Pool()

    @classmethod
    def adopt(cls, dense: Recurrent) -> SparseRecurrent:
        """The layer with the gates of `dense`, which are sparse by now."""
        return cls(dense.kind, dense.hidden, dense.input, dense.state).train(dense.training)

    def released(self) -> Recurrent:
        """The inverse of `adopt`, for gates that are dense again."""
        with torch.device("meta"):
            dense = Recurrent(self.kind, 1, self.hidden)
        dense.input, dense.state = self.input, self.state
        return dense.train(self.training)

    def gates(self) -> list[SparseLinear]:
        """Those of the input and then those of the state, in the order in which the native code knows them."""
        cell = CELLS[self.kind]
        return [
            part[f"{name}_gate"]  # type: ignore[misc]
            for part, names in ((self.input, cell.inputs), (self.state, cell.states))
            for name in names
        ]

    def forward(self, x: Tensor) -> Tensor:  # [n, t, inputs] -> [n, t, hidden]
        gates = self.gates()
        if not (x.dtype == gates[0].weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel()):
            return plain_sequence(self, x)
        joined = self._join([gate.pattern for gate in gates])
        count = CELLS[self.kind].gates
        given: list[Tensor] = []
        for part, product in ((gates[:count], joined.input), (gates[count:], joined.state)):
            given.append(_Reordered.apply(torch.cat([gate.weight for gate in part]), product.order))
            given.append(torch.cat([gate.bias for gate in part if gate.bias is not None]))
        result: Tensor = _Sequence.apply(x, *given, self, joined, self._pool)
        return result

    def _join(self, patterns: list[Pattern]) -> Joined:
        """The products of all gates together, made anew when connections have moved."""
        if self._joined is None or any(a is not b for a, b in zip(self._joined[0], patterns, strict=True)):
            self._joined = patterns, Joined(self.kind, patterns)
        return self._joined[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_joined": None, "_pool": Pool()}  # addresses are of this process


_NARROWEST = 256  # columns of a block: a step's few columns of so many rows stay in the first cache


@dataclass(frozen=True, eq=False)
class _Together:
    """The matrices of all gates below each other, or their transpose."""

    products: Products
    order: Tensor  # int64 [nnz]: its values are `torch.cat(the gates' values)[order]`


class Joined:
    """The products of all gates' connections, of the input and of the state, and of both transposed."""

    def __init__(self, kind: str, patterns: Sequence[Pattern], target: Target | None = None) -> None:
        """patterns: of the input's gates and then of the state's, [hidden, in] and [hidden, hidden] each."""
        self.target = target or host()
        count = CELLS[kind].gates
        self.input, self.state = self._together(patterns[:count]), self._together(patterns[count:])
        self.input_turned = self._turned(self.input.products.pattern)
        self.state_turned = self._turned(self.state.products.pattern)

    def _together(self, patterns: Sequence[Pattern]) -> _Together:
        height, width = patterns[0].shape
        flat = [pattern.positions() + i * height * width for i, pattern in enumerate(patterns)]
        return self._arranged(np.concatenate(flat), (len(patterns) * height, width))

    def _turned(self, pattern: Pattern) -> _Together:
        """The transpose; its values are those of the pattern in another order."""
        height, width = pattern.shape
        row, column = np.divmod(pattern.positions(), width)
        return self._arranged(column * height + row, (width, height))

    def _arranged(self, flat: np.ndarray, shape: tuple[int, int]) -> _Together:
        pattern, order = arrange(flat, shape, _NARROWEST)
        return _Together(Products(pattern, self.target), torch.from_numpy(order))


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
        layer: SparseRecurrent, joined: Joined, pool: Pool,
    ) -> Tensor:  # fmt: skip
        cell, hidden, blocks = CELLS[layer.kind], layer.hidden, Blocks.of(x.shape[0], x.shape[1], joined.target)
        columns = blocks.pack(x)
        kept, states = blocks.empty(pool, KEPT * hidden), blocks.empty(pool, hidden)
        cells = blocks.empty(pool, hidden) if cell.has_cell else states
        where = blocks.lanes(columns.shape[1], KEPT * hidden)
        joined.input.products.run("forward", where, [columns, kept, w_in.contiguous(), b_in.contiguous()])
        out = pool.empty(hidden, blocks.steps, blocks.batch)
        scratch = x.new_empty(blocks.panels * (2 + cell.gates) * hidden * blocks.wide)
        buffers = [kept, states, cells, out, w_state.contiguous(), b_state.contiguous(), scratch]
        _run(joined.state.products, f"{layer.kind}_forward", blocks, hidden, buffers)
        ctx.save_for_backward(columns, w_in, w_state, kept, states, cells)
        ctx.layer, ctx.joined, ctx.pool, ctx.blocks = layer, joined, pool, blocks
        return out[:, :, : blocks.count].permute(2, 1, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        columns, w_in, w_state, kept, states, cells = ctx.saved_tensors
        layer, joined, pool, blocks = ctx.layer, ctx.joined, ctx.pool, ctx.blocks
        cell, hidden = CELLS[layer.kind], layer.hidden
        gradients = blocks.empty(pool, KEPT * hidden)
        errors = blocks.beside(dy)
        scratch = dy.new_empty(blocks.panels * (2 + cell.gates) * hidden * blocks.wide)
        turned = w_state[joined.state_turned.order]
        buffers = [kept, states, cells, gradients, errors, turned, dy.new_zeros(hidden), scratch]
        _run(joined.state_turned.products, f"{layer.kind}_backward", blocks, hidden, buffers)

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
            joined.input_turned.products.run("forward", where, [gradients, dx, turned, dy.new_zeros(inputs)])
        _record(layer.gates(), columns, states, gradients, first)
        db = gradients.sum((0, 2))
        return None if dx is None else blocks.unpack(dx), dw_in, db[:rows], dw_state, db[first:], None, None, None


def _run(product: Products, name: str, blocks: Blocks, hidden: int, buffers: Sequence[Tensor]) -> None:
    """One native function over all panels of the batch."""
    numbers = blocks.numbers(hidden, product.pattern.tiles)
    constants = np.array([numbers.ctypes.data, product.table(blocks.step_lanes()).ctypes.data], np.int64)
    addresses = np.array([tensor.data_ptr() for tensor in buffers], np.int64)
    team.call(product.library, f"sparsify_{name}_{blocks.vectors}", blocks.panels, addresses, constants)


def _record(gates: Iterable[SparseLinear], columns: Tensor, states: Tensor, gradients: Tensor, first: int) -> None:
    """Let the gates keep what an update makes dense gradients of; nothing is made where none of them asks."""
    wanting = [gate for gate in gates if gate.tape is not None]
    if not wanting:
        return
    inputs, before, errors = (part.transpose(0, 1).flatten(1) for part in (columns, states, gradients))
    every, hidden = list(gates), states.shape[1]
    for number, gate in enumerate(every):
        of_input = number < len(every) // 2
        start = number * hidden if of_input else first + (number - len(every) // 2) * hidden
        if gate.tape is not None:
            gate.tape.append((inputs if of_input else before, errors[start : start + hidden]))


def plain_sequence(layer: SparseRecurrent, x: Tensor) -> Tensor:
    """The layer in torch's own operations, step by step: any dtype and device, slow and large."""
    names, steps = GATES[layer.kind], x.shape[1]
    h = c = x.new_zeros(x.shape[0], layer.hidden)
    found = []
    for step in range(steps):
        shares = [
            [plain(given, gate.weight, gate.bias, gate.pattern) for gate in (part[f"{name}_gate"] for name in names)]  # type: ignore[arg-type]
            for part, given in ((layer.input, x[:, step]), (layer.state, h))
        ]
        if layer.kind == "gru":
            (xr, xu, xn), (zr, zu, zn) = shares
            update = torch.sigmoid(xu + zu)
            h = (1 - update) * torch.tanh(xn + torch.sigmoid(xr + zr) * zn) + update * h
        else:
            i, f, g, o = (a + b for a, b in zip(*shares, strict=True))
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        found.append(h)
    return torch.stack(found, 1) if found else x.new_zeros(x.shape[0], 0, layer.hidden)
