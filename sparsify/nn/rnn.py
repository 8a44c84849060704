"""torch.nn.GRU and torch.nn.LSTM that hold the non-zeros of their weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.architectures._recurrent import GATES
from sparsify.errors import SparsityError
from sparsify.nn.kernels._cells import CELLS
from sparsify.nn.layer import positions_key
from sparsify.nn.linear import SparseLinear
from sparsify.nn.memory import Pool
from sparsify.nn.pattern import Pattern
from sparsify.nn.products import plain
from sparsify.nn.sequence import Joined, Layer, Stacked, plain_sequence, run_sequence

KINDS: dict[type[nn.Module], str] = {nn.GRU: "gru", nn.LSTM: "lstm"}
State = Tensor | tuple[Tensor, Tensor] | None


class SparseRNN(nn.Module):
    """What a torch.nn.GRU or LSTM is for dense weights, with the same arguments and results; no packed sequences.

    Parameters have torch's names and order; `weight_ih_l0` and the like are [nnz], each in the order of its
    SparseLinear in `gates`, which knows the positions in the dense weight [gates * hidden, in]. In a state dict
    `weight_ih_l0_positions` stands beside. On the CPU in float32 all steps of a layer are one native call.
    """

    def __init__(self, dense: nn.RNNBase, positions: Mapping[str, Tensor]) -> None:
        """Sizes, biases and settings of `dense`, random values at flat positions, int64 [nnz] ascending, by weight."""
        super().__init__()
        self.kind, self.like = KINDS[type(dense)], type(dense)
        self.hidden, self.batch_first, self.dropout = dense.hidden_size, dense.batch_first, dense.dropout
        self.settings = {
            name: getattr(dense, name)
            for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        }
        self.gates: dict[str, SparseLinear] = {}
        self._native: dict[str, tuple[tuple[Pattern, Pattern], Layer]] = {}
        self._pool = Pool()
        for name, parameter in dense.named_parameters():
            if name in positions:
                rows, inputs = parameter.shape
                self.gates[name] = SparseLinear(inputs, rows, positions[name], bias=False)
                self.register_parameter(name, self.gates[name].weight)
            else:
                self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    @staticmethod
    def can_stand_for(module: nn.Module) -> bool:
        if type(module) not in KINDS:
            return False
        assert isinstance(module, nn.RNNBase)
        return not module.proj_size and all(name in module._parameters for name in module._flat_weights_names)

    @classmethod
    def from_dense(cls, dense: nn.RNNBase, masks: Mapping[str, Tensor]) -> Self:
        """The module that computes what `dense` does with its weights masked. masks: by the weight's own name."""
        flat = {name: mask.detach().cpu().flatten().nonzero().squeeze(1) for name, mask in masks.items()}
        with torch.random.fork_rng(devices=[]):
            layer = cls(dense, flat)
        with torch.no_grad():
            for name, gate in layer.gates.items():
                gate.weight.copy_(dense.get_parameter(name).detach().cpu().flatten()[gate.positions()])
        return layer.to(dense.get_parameter("weight_hh_l0")).train(dense.training)

    def dense_layer(self) -> nn.Module:
        """The torch module that computes the same."""
        dense = self.like(**self.settings, device="meta")
        for name, parameter in self.named_parameters():
            here = self.gates.get(name)
            setattr(dense, name, parameter if here is None else nn.Parameter(here.to_dense()))
        return dense.train(self.training)

    def forward(self, x: Tensor, hx: State = None) -> tuple[Tensor, Any]:
        """x [t, n, in], or [n, t, in] with batch_first, or [t, in]; states as torch's, zeros without."""
        batched = x.ndim == 3
        if not batched:
            x, hx = x[None], _each(hx, lambda state: state[:, None])
        elif not self.batch_first:
            x = x.transpose(0, 1)
        places = list(self._places())
        starts = self._starts(x, hx, len(places))
        ends: list[tuple[Tensor, Tensor | None]] = []
        outputs: list[Tensor] = []
        for number, (suffix, layer, back) in enumerate(places):
            if layer and not outputs and self.training and self.dropout:
                # In torch's order of memory, so that the same entries are dropped.
                x = nn.functional.dropout(x.transpose(0, 1).contiguous(), self.dropout).transpose(0, 1)
            out, c = self._direction(suffix, x.flip(1) if back else x, *starts[number])
            ends.append((out[:, -1], c))
            outputs.append(out.flip(1) if back else out)
            if back == self.settings["bidirectional"]:
                x, outputs = torch.cat(outputs, 2) if len(outputs) > 1 else out, []
        last = tuple(torch.stack(found) for found in zip(*ends, strict=True) if found[0] is not None)
        if not batched:
            x, last = x[0], tuple(state[:, 0] for state in last)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x, last if self.kind == "lstm" else last[0]

    def _places(self) -> Iterator[tuple[str, int, bool]]:
        """Each direction of each layer: what its parameters' names end in, its layer, and whether it runs back."""
        for layer in range(self.settings["num_layers"]):
            for back in (False, True) if self.settings["bidirectional"] else (False,):
                yield f"l{layer}{'_reverse' if back else ''}", layer, back

    def _starts(self, x: Tensor, hx: State, places: int) -> Sequence[tuple[Tensor | None, Tensor | None]]:
        """State and cell of each place before the first step. Raises SparsityError for shapes that do not fit."""
        if x.ndim != 3 or x.shape[2] != self.settings["input_size"] or not x.shape[1]:
            raise SparsityError(
                f"A sparse {self.like.__name__} takes sequences of at least one step and {self.settings['input_size']} "
                f"features, with a batch in its {'first' if self.batch_first else 'second'} dimension or none; it got "
                f"{list(x.shape)} (batch first). Packed sequences are for the dense module: see `to_dense`."
            )
        given = [None] * (1 + (self.kind == "lstm")) if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        wanted = (places, x.shape[0], self.hidden)
        if len(given) != 1 + (self.kind == "lstm") or any(s is not None and s.shape != wanted for s in given):
            raise SparsityError(
                f"The initial state of this sparse {self.like.__name__} must be {list(wanted)}, layers and directions "
                f"by batch by units{', and so its cell' if self.kind == 'lstm' else ''}."
            )
        h, c = [*given, None][:2]
        return [(None if h is None else h[i], None if c is None else c[i]) for i in range(places)]

    def _direction(
        self, suffix: str, x: Tensor, h: Tensor | None, c: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:  # x: [n, t, inputs]
        names = [f"{part}_{suffix}" for part in ("weight_ih", "weight_hh")]
        weights = [self.get_parameter(name) for name in names]
        biases = [
            self.get_parameter(f"{part}_{suffix}") if self.settings["bias"] else weights[0].new_zeros(self._rows)
            for part in ("bias_ih", "bias_hh")
        ]
        if x.dtype == weights[0].dtype == torch.float32 and x.device.type == "cpu" and x.numel():
            order = _order(self.kind)
            b_in = biases[0] if order == sorted(order) else torch.cat([biases[0].chunk(len(order))[i] for i in order])
            return run_sequence(self._layer(suffix), x, (weights[0], weights[1]), (b_in, biases[1]), h, c)
        of_input, of_state = (
            lambda given, w=w, b=b, p=self.gates[name].pattern: plain(given, w, b, p).chunk(len(GATES[self.kind]), 1)
            for name, w, b in zip(names, weights, biases, strict=True)
        )
        nothing = x.new_zeros(x.shape[0], self.hidden)
        return plain_sequence(
            self.kind, x, of_input, of_state, nothing if h is None else h, nothing if c is None else c
        )

    @property
    def _rows(self) -> int:
        return len(GATES[self.kind]) * self.hidden

    def _layer(self, suffix: str) -> Layer:
        """The native code of one place, made anew when connections have moved."""
        of_input, of_state = (self.gates[f"{part}_{suffix}"] for part in ("weight_ih", "weight_hh"))
        patterns = of_input.pattern, of_state.pattern
        held = self._native.get(suffix)
        if held is None or held[0][0] is not patterns[0] or held[0][1] is not patterns[1]:
            order = _order(self.kind)

            def record(inputs: Tensor, before: Tensor, errors: Tensor, of_sums: Tensor) -> None:
                parts = errors.split(self.hidden)
                if of_input.tape is not None:
                    of_input.tape.append((inputs, torch.cat([parts[order.index(i)] for i in range(len(parts))])))
                if of_state.tape is not None:
                    of_state.tape.append((before, of_sums))

            joined = Joined(self.kind, _reordered(patterns[0], order), (patterns[1].positions(), patterns[1].shape))
            recording = lambda: of_input.tape is not None or of_state.tape is not None  # noqa: E731
            layer = Layer(joined, self.hidden, record, recording, self._pool)
            held = self._native[suffix] = patterns, layer
        return held[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, gate in self.gates.items():  # torch may have put another Parameter there
            gate.weight = self.get_parameter(name)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, gate in self.gates.items():
            destination[f"{prefix}{positions_key(name)}"] = gate.positions()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Values may come in any order, with their positions beside them."""
        keys = {f"{prefix}{name}": f"{prefix}{positions_key(name)}" for name in self.gates}
        for (key, places), gate in zip(keys.items(), self.gates.values(), strict=True):
            if key in state and places in state:
                state = {**state, key: gate.arranged(state[places], state[key])}
        super()._load_from_state_dict(state, prefix, *rest)
        unexpected = rest[-2]
        unexpected[:] = [key for key in unexpected if key not in keys.values()]

    def extra_repr(self) -> str:
        nonzeros = sum(gate.pattern.count for gate in self.gates.values())
        return f"{self.like.__name__}, {', '.join(f'{k}={v}' for k, v in self.settings.items())}, nonzeros={nonzeros}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": {}, "_pool": Pool()}  # addresses are of this process


def _each(hx: State, change: Callable[[Tensor], Tensor]) -> State:
    return hx if hx is None else change(hx) if isinstance(hx, Tensor) else (change(hx[0]), change(hx[1]))


def _order(kind: str) -> list[int]:
    """Which of torch's gates stands in each place of the inputs' sums; those of the state stand as torch has them."""
    assert CELLS[kind].states == GATES[kind]
    return [GATES[kind].index(name) for name in CELLS[kind].inputs]


def _reordered(pattern: Pattern, order: Sequence[int]) -> Stacked:
    """The positions of a pattern with its gates in another order; they stay in the order of the values."""
    size = pattern.shape[0] * pattern.shape[1] // len(order)
    gate, within = np.divmod(pattern.positions(), max(1, size))
    return np.argsort(order)[gate] * size + within, pattern.shape
