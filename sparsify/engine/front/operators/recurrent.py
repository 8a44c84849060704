"""GRU and LSTM, one Recurrent operation for each direction."""

from __future__ import annotations

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Node
from sparsify.engine.front.operators.layout import cut
from sparsify.engine.front.registry import importer
from sparsify.engine.program import Rearrange, Recurrent

GATES = {"GRU": 3, "LSTM": 4}
ACTIVATIONS = {"GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _refuse(b: Builder, node: Node) -> None:
    """Raises Unsupported for what the grammar lacks."""
    usual = ACTIVATIONS[node.operator]
    given = tuple(node.get("activations", ()))
    if tuple(a.lower() for a in given) not in ((), *(tuple(a.lower() for a in usual * n) for n in (1, 2))):
        raise Unsupported(f"activations {given}")
    if node.get("clip") is not None or node.get("input_forget", 0) or node.input(7):
        raise Unsupported("clipped, coupled or peeping gates")
    if node.input(4):
        steps = b.shape(node.input(0))[1 if node.get("layout", 0) else 0]
        if (b.need_constant(node.input(4)) != steps).any():
            raise Unsupported("sequences of several lengths")


@importer("GRU", "LSTM")
def recurrent(b: Builder, node: Node) -> None:
    _refuse(b, node)
    reverses = DIRECTIONS[node.get("direction", "forward")]
    weight, recurrence = b.need_constant(node.input(1)), b.need_constant(node.input(2))
    gates = GATES[node.operator] * recurrence.shape[2]
    bias = b.need_constant(node.input(3)) if node.input(3) else np.zeros((len(weight), 2 * gates), np.float32)
    if not len(weight) == len(recurrence) == len(bias) == len(reverses) or bias.shape[1] != 2 * gates:
        raise ValueError(f"weights {weight.shape}, {recurrence.shape} and bias {bias.shape} do not fit")
    batch_first = bool(node.get("layout", 0))
    source = b.transpose(node.input(0), (1, 0, 2)) if batch_first else node.input(0)
    found = []
    for i, reverse in enumerate(reverses):
        outputs = tuple(b.fresh(name) if name else None for name in (node.outputs + ("",) * 3)[:3])
        if not any(outputs):
            raise ValueError("nothing of it is wanted")
        operation = Recurrent(
            kind=node.operator.lower(),  # type: ignore[arg-type]
            input=source,
            outputs=outputs if node.operator == "LSTM" else outputs[:2],
            weight=weight[i],
            recurrence=recurrence[i],
            bias=bias[i].reshape(2, gates),
            initial=tuple(_initial(b, node.input(k), i, batch_first) for k in (5, 6)),
            reverse=reverse,
            linear_before_reset=bool(node.get("linear_before_reset", 0)),
            name=node.name,
        )
        b.emit(operation)
        found.append(outputs)
    _join(b, node, found, batch_first)


def _initial(b: Builder, name: str, direction: int, batch_first: bool) -> str | None:
    """One direction [n, hidden] of an initial state [directions, n, hidden]."""
    if not name:
        return None
    axis = 1 if batch_first else 0
    part = cut(b, name, [axis], [(direction, direction + 1, 1)])
    shape = b.shape(part)
    return b.reshape(part, tuple(size for i, size in enumerate(shape) if i != axis))


def _join(b: Builder, node: Node, found: list[tuple[str | None, ...]], batch_first: bool) -> None:
    """Directions side by side: [t, directions, n, hidden] and [directions, n, hidden]."""
    for i, output in enumerate(node.outputs):
        if not output:
            continue
        axis = 1 if i == 0 else 0
        parts = []
        for names in found:
            name = names[i] or ""
            shape = b.shape(name)
            parts.append(b.reshape(name, (*shape[:axis], 1, *shape[axis:])))
        whole = parts[0]
        if len(parts) > 1:
            whole = b.emit(Rearrange("concat", tuple(parts), b.fresh(output), {"axis": axis}))
        if batch_first:
            whole = b.transpose(whole, (2, 0, 1, 3) if i == 0 else (1, 0, 2))
        b.alias(output, whole)
