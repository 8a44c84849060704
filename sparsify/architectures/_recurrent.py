"""What the character-level GRU and LSTM share: one layer whose every gate is a matrix of its own, and the read-out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import FormatError

# Gates in torch's order and in that of the ONNX operators.
GATES = {"gru": ("reset", "update", "new"), "lstm": ("in", "forget", "cell", "out")}
ONNX_GATES = {"gru": ("update", "reset", "new"), "lstm": ("in", "out", "forget", "cell")}


class Recurrent(nn.Module):
    """A GRU (Cho et al. 2014, in cuDNN's form) or an LSTM (Hochreiter and Schmidhuber 1997) from a state of zeros.

    Each gate has a linear layer of its own for the input and one for the state, so that density, drop and growth
    are its own; they are put together for torch's kernels, which are as fast as torch.nn.GRU's.
    """

    def __init__(self, kind: str, inputs: int, hidden: int) -> None:
        super().__init__()
        self.kind, self.hidden = kind, hidden
        self.input = nn.ModuleDict({f"{gate}_gate": nn.Linear(inputs, hidden) for gate in GATES[kind]})
        self.state = nn.ModuleDict({f"{gate}_gate": nn.Linear(hidden, hidden) for gate in GATES[kind]})
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)  # as torch.nn.GRU and LSTM start

    def forward(self, x: Tensor) -> Tensor:  # [n, t, inputs] -> [n, t, hidden]
        if torch.onnx.is_in_onnx_export() and not torch.jit.is_tracing():  # the old exporter traces
            return self._operator(x)
        order = GATES[self.kind]
        weights = [*self._joined(order, "weight"), *self._joined(order, "bias")]
        state = x.new_zeros(1, x.shape[0], self.hidden)  # not len(x), which tracing takes for a constant
        if self.kind == "gru":
            return torch.gru(x, state, weights, True, 1, 0.0, self.training, False, True)[0]
        return torch.lstm(x, (state, state), weights, True, 1, 0.0, self.training, False, True)[0]

    def _operator(self, x: Tensor) -> Tensor:
        """The same as the ONNX operator itself: torch's translation of its kernels writes the sample's length down.

        Raises FormatError where torch cannot be told the operator.
        """
        if not hasattr(torch.onnx, "ops"):
            raise FormatError(
                f"ONNX files of recurrent networks need torch 2.8 or newer; this is {torch.__version__}. Export "
                f"safetensors, or install a newer torch."
            )
        weight, recurrence = (part[None] for part in self._joined(ONNX_GATES[self.kind], "weight"))
        bias = torch.cat(self._joined(ONNX_GATES[self.kind], "bias"))[None]
        count, steps, _ = x.shape
        attributes: dict[str, Any] = {"hidden_size": self.hidden} | (
            {"linear_before_reset": 1} if self.kind == "gru" else {}
        )
        states: Tensor = torch.onnx.ops.symbolic(
            self.kind.upper(),
            (x.transpose(0, 1), weight, recurrence, bias),
            attributes,
            dtype=x.dtype,
            shape=(steps, 1, count, self.hidden),  # the second extent is that of directions
            version=14,
        )
        return states.squeeze(1).transpose(0, 1)

    def _joined(self, order: Sequence[str], name: str) -> list[Tensor]:
        """Weights or biases of all gates below each other, of the input and of the state: [gates * hidden, ...]."""
        return [
            torch.cat([part[f"{gate}_gate"].get_parameter(name) for gate in order]) for part in (self.input, self.state)
        ]


class CharacterModel(nn.Module):
    """Embedding, one recurrent layer, and a read-out of linear layers with ReLU between them."""

    def __init__(
        self, kind: str, vocabulary: int, classes: int, embedding: int, hidden: int, readout: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.recurrent = Recurrent(kind, embedding, hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise([hidden, *readout, classes]):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.readout = nn.Sequential(*layers[:-1])

    def forward(self, tokens: Tensor) -> Tensor:  # [n, t] int64 -> [n, t, classes]
        return self.readout(self.recurrent(self.embedding(tokens)))


def build_character_model(
    kind: str,
    vocabulary: int,
    classes: int,
    embedding: int,
    hidden: int,
    readout: tuple[int, ...],
    width_multiplier: float,
) -> nn.Module:
    """The network with every layer's neurons times width_multiplier. Raises ValueError for impossible sizes."""
    if min(embedding, hidden, *readout) < 1:
        raise ValueError(f"embedding = {embedding}, hidden = {hidden} and readout = {readout} must be at least 1")
    if not width_multiplier > 0:
        raise ValueError(f"width_multiplier = {width_multiplier} must be positive")
    scaled = [max(1, round(width_multiplier * size)) for size in (embedding, hidden, *readout)]
    return CharacterModel(kind, vocabulary, classes, scaled[0], scaled[1], tuple(scaled[2:]))
