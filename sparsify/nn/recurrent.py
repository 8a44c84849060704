"""A GRU or LSTM layer whose gates hold their non-zeros only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.architectures._recurrent import GATES, Recurrent
from sparsify.engine.target import Target
from sparsify.nn.kernels._cells import CELLS
from sparsify.nn.linear import SparseLinear
from sparsify.nn.memory import Pool
from sparsify.nn.pattern import Pattern
from sparsify.nn.products import plain
from sparsify.nn.sequence import Joined, Layer, Stacked, plain_sequence, run_sequence


class SparseRecurrent(nn.Module):
    """What `architectures._recurrent.Recurrent` is for dense gates: [n, t, inputs] to [n, t, hidden], from zeros.

    input and state: a SparseLinear for each gate, by the names that `Recurrent` gives them.
    """

    def __init__(self, kind: str, hidden: int, input: nn.ModuleDict, state: nn.ModuleDict) -> None:
        super().__init__()
        self.kind, self.hidden, self.input, self.state = kind, hidden, input, state
        self._native: tuple[list[Pattern], Layer] | None = None
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

    def gates(self) -> tuple[list[SparseLinear], list[SparseLinear]]:
        """Those of the input and those of the state, in the order in which the native code knows them."""
        cell = CELLS[self.kind]
        inputs, states = (
            [part[f"{name}_gate"] for name in names]
            for part, names in ((self.input, cell.inputs), (self.state, cell.states))
        )
        return inputs, states  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:  # [n, t, inputs] -> [n, t, hidden]
        parts = self.gates()
        if not (x.dtype == parts[0][0].weight.dtype == torch.float32 and x.device.type == "cpu" and x.numel()):
            return self._plain(x)
        of_input, of_state = (torch.cat([gate.weight for gate in part]) for part in parts)
        b_in, b_state = (torch.cat([gate.bias for gate in part if gate.bias is not None]) for part in parts)
        return run_sequence(self.native(), x, (of_input, of_state), (b_in, b_state))[0]

    def native(self, target: Target | None = None) -> Layer:
        """The native code of all gates together, made anew when connections have moved."""
        inputs, states = self.gates()
        patterns = [gate.pattern for gate in (*inputs, *states)]
        if self._native is None or any(a is not b for a, b in zip(self._native[0], patterns, strict=True)):
            joined = Joined(self.kind, _stacked(patterns[: len(inputs)]), _stacked(patterns[len(inputs) :]), target)
            self._native = patterns, Layer(joined, self.hidden, self._record, self._recording, self._pool)
        return self._native[1]

    def _recording(self) -> bool:
        return any(gate.tape is not None for part in self.gates() for gate in part)

    def _record(self, inputs: Tensor, before: Tensor, of_input: Tensor, of_state: Tensor) -> None:
        """Let the gates keep what an update makes dense gradients of."""
        for part, given, errors in zip(self.gates(), (inputs, before), (of_input, of_state), strict=True):
            for gate, own in zip(part, errors.split(self.hidden), strict=True):
                if gate.tape is not None:
                    gate.tape.append((given, own))

    def _plain(self, x: Tensor) -> Tensor:
        start = x.new_zeros(x.shape[0], self.hidden)
        return plain_sequence(self.kind, x, self._sums(self.input), self._sums(self.state), start, start)[0]

    def _sums(self, part: nn.ModuleDict) -> Any:
        gates: list[Any] = [part[f"{name}_gate"] for name in GATES[self.kind]]
        return lambda given: [plain(given, gate.weight, gate.bias, gate.pattern) for gate in gates]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None, "_pool": Pool()}  # addresses are of this process


def _stacked(patterns: Sequence[Pattern]) -> Stacked:
    """The positions of several matrices of one shape below each other, in the order of their values."""
    height, width = patterns[0].shape
    flat = [pattern.positions() + i * height * width for i, pattern in enumerate(patterns)]
    return np.concatenate(flat), (len(patterns) * height, width)
