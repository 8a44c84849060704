"""A model file's graph as plain Python: nodes, constants as numpy arrays, inputs with symbolic sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from sparsify.engine.front.constants import Array as Array
from sparsify.engine.front.constants import Constants


@dataclass(frozen=True)
class Port:
    """An input or output of the model. dtype is numpy's name of what callers give or get."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None  # a str is a symbolic size; None as a whole: rank unknown


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. `attributes` hold numbers, tuples, strings, arrays and, for control flow, Graphs."""

    operator: str
    domain: str
    inputs: tuple[str, ...]  # "" where an optional input is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    name: str
    opset: int  # version of the operator's domain
    proto: onnx.NodeProto  # as it was read, for onnxruntime

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute's value."""
        found = self.attributes.get(attribute)
        return default if found is None else found

    def input(self, index: int) -> str:
        """Name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self, index: int) -> str:
        """Name of an output, "" where nobody wants it."""
        return self.outputs[index] if index < len(self.outputs) else ""


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in an order in which they can run."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    constants: Constants
    opsets: Mapping[str, int] = field(default_factory=dict)  # by domain; "" is ONNX's own
    file_bytes: int = 0
