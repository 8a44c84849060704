"""The engine's front: an ONNX model in, a Program for given input shapes out.

`load(path_or_bytes)` reads a model and computes what depends on weights alone, once; `build(graph, shapes)` makes
the program for one set of input shapes. Any number of threads may build from one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsify.engine.front.graph import Graph
from sparsify.engine.front.importing import fold_constants, import_graph
from sparsify.engine.front.passes import run_passes
from sparsify.engine.front.reading import read_graph
from sparsify.engine.program import Program, Shape


def load(source: str | Path | bytes) -> Graph:
    """A model file, or its bytes, whose large weights stay there. Raises EngineError where it cannot be read."""
    return fold_constants(read_graph(source))


def build(graph: Graph, shapes: Mapping[str, Shape]) -> Program:
    """The program for these shapes of all inputs, after all passes.

    Raises EngineError where the model makes no sense for them, or asks for more than the limits allow.
    """
    return run_passes(import_graph(graph, shapes))
