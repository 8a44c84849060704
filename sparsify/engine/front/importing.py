"""A Graph as a Program for given input shapes: node by node, each by its importer."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from sparsify.engine.foreign import first_line
from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.fallback import DataDependent, foreign, function_body, is_foldable
from sparsify.engine.front.graph import Graph, Node
from sparsify.engine.front.reading import Reader, outer_needs
from sparsify.engine.front.registry import importers
from sparsify.engine.limits import LIMITS, Budget
from sparsify.engine.program import Program, Shape, Value
from sparsify.errors import EngineError

NONSENSE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
)


def fold_constants(graph: Graph) -> Graph:
    """The graph with everything computed that depends on no input: packed weights become dense ones."""
    importer = _Importer(graph, ())
    builder = importer.builder
    rest = []
    for node in graph.nodes:
        inputs = [builder.resolve(name) for name in outer_needs(node.proto)]
        if is_foldable(node) and all(name in builder.constants for name in inputs):
            with contextlib.suppress(DataDependent):
                importer.add(node)
                continue
        rest.append(node)
    wanted = {name for node in rest for name in outer_needs(node.proto)} | {port.name for port in graph.outputs}
    resolved = {name: builder.resolve(name) for name in wanted}
    constants = builder.constants.chosen({name: r for name, r in resolved.items() if r in builder.constants})
    return replace(graph, nodes=tuple(rest), constants=constants)


def import_graph(graph: Graph, shapes: Mapping[str, Shape]) -> Program:
    """The program of a graph for these input shapes, before any pass.

    Raises EngineError for a model that makes no sense or goes beyond the limits.
    """
    inputs = [Value(p.name, shapes[p.name], canonical_dtype(p.dtype)) for p in graph.inputs]
    importer = _Importer(graph, inputs)
    for i, node in enumerate(graph.nodes):
        try:
            importer.add(node)
        except DataDependent:
            importer.leave(graph.nodes[i:])
            break
    return importer.builder.finish([port.name for port in graph.outputs])


def canonical_dtype(dtype: str) -> str:
    """What the engine computes in for values that callers give in some dtype."""
    return "float32" if dtype in ("float16", "bfloat16", "float64") else dtype


class _Importer:
    def __init__(self, graph: Graph, inputs: Sequence[Value]) -> None:
        self.graph = graph
        self.builder = Builder(graph.constants, inputs, Budget(graph.file_bytes))
        self.reader = Reader(None, graph.opsets, graph.file_bytes)

    def add(self, node: Node, depth: int = 0) -> None:
        """Import a node, whichever way works. Raises EngineError that names it."""
        try:
            self._add(node, depth)
        except (DataDependent, EngineError):
            raise
        except NONSENSE as error:
            raise EngineError(
                f"The {node.operator} node '{node.name}' cannot be run: {first_line(error)} The model is "
                f"damaged, or was given an input whose shape it is not made for."
            ) from error

    def _add(self, node: Node, depth: int) -> None:
        if depth > LIMITS.nesting:
            raise ValueError("functions or graphs are nested too deeply")
        resolved = replace(node, inputs=tuple(self.builder.resolve(name) for name in node.inputs))
        if node.operator == "If" and self._branch(resolved, depth):
            return
        if self._is_known(node) and self._imported(resolved):
            return
        body = function_body(self.builder, resolved)
        if body is not None and all(n.op_type in importers() for n in body):
            known = set(self.builder.values)
            for proto in body:
                known |= set(proto.output)
                self.add(self.reader.node(proto, known), depth + 1)
            return
        self._foreign(node)

    def _is_known(self, node: Node) -> bool:
        return node.domain == "" and node.operator in importers()

    def _imported(self, node: Node) -> bool:
        """Whether the node's own importer took it. Nothing is left behind where it did not."""
        builder = self.builder
        before = len(builder.operations)
        try:
            importers()[node.operator](builder, node)
        except Unsupported:
            del builder.operations[before:]
            for name in node.outputs:
                builder.aliases.pop(name, None)
            return False
        return True

    def _branch(self, node: Node, depth: int) -> bool:
        """Import the branch of an If whose condition is constant."""
        condition = self.builder.constant(node.input(0))
        if condition is None:
            return False
        branch: Graph = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"]
        for name, array in branch.constants.items():
            self.builder.define(name, array)
        for inner in branch.nodes:
            self.add(inner, depth + 1)
        for output, port in zip(node.outputs, branch.outputs, strict=True):
            self.builder.alias(output, port.name)
        return True

    def _foreign(self, node: Node) -> None:
        outputs = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
        operation, written = foreign(self.builder, [node], outputs, self.graph.opsets)
        if any(size < 0 for value in written for size in value.shape):
            raise DataDependent(node.name)
        if not operation.inputs and not is_foldable(node):
            raise DataDependent(node.name)  # random numbers, say: drawn anew at every run, so never folded
        self.builder.emit(operation, *written)

    def leave(self, nodes: Sequence[Node]) -> None:
        """Leave all the remaining nodes to onnxruntime, as one operation."""
        builder = self.builder
        written = {name for node in nodes for name in node.outputs}
        ports = [port for port in self.graph.outputs if port.name in written]
        outputs = [onnx.helper.make_empty_tensor_value_info(port.name) for port in ports]
        operation, values = foreign(builder, nodes, outputs, self.graph.opsets)
        builder.operations.append(operation)
        builder.values |= {value.name: value for value in values}
