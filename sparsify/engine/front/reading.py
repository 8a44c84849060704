"""An ONNX file, of any exporter and possibly hostile, as a Graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from sparsify.engine.front.constants import Constants
from sparsify.engine.front.graph import Graph, Node, Port
from sparsify.engine.front.tensors import Folder, Raw, initializer, numpy_dtype, sparse_to_array, to_array
from sparsify.engine.limits import LIMITS, Budget
from sparsify.engine.unread import Bytes, OpenFile, Source
from sparsify.errors import EngineError
from sparsify.onnx_scan import scan_bytes, scan_open

OLDEST_OPSET = 7  # where ONNX took on numpy's broadcasting; exporters of opset 11 and up are tested
PORT_DTYPES = ("bfloat16", "bool", "object", *(np.dtype(code).name for code in "efd" + "bhiq" + "BHIQ"))
DEFAULT_DOMAINS = ("", "ai.onnx")


def read_graph(source: str | Path | bytes) -> Graph:
    """Read a model file, or its bytes, all floating point as float32. Large weights stay in the file.

    Raises EngineError where the file is missing, damaged, hostile or of a form that cannot be handled.
    """
    file = _File(source)
    model = file.model
    if not model.HasField("graph") or not model.graph.output:
        raise _damaged("it holds no graph with an output")
    model = _inlined(model)
    opsets = {"" if o.domain in DEFAULT_DOMAINS else o.domain: o.version for o in model.opset_import}
    _check_opset(opsets.get("", OLDEST_OPSET))
    reader = Reader(file.folder, opsets, file.size)
    return reader.graph(model.graph, outer=set(), depth=0, weights=file.weights())


Weights = Iterator[tuple[TensorProto, Raw | None]]  # a tensor, and where its raw data lie if they are not in there


class _File:
    """A model file, or its bytes, of which only the graph is in memory."""

    def __init__(self, source: str | Path | bytes) -> None:
        self.folder: Folder | None = None
        self.model = ModelProto()
        path = None if isinstance(source, (bytes, bytearray, memoryview)) else _checked(Path(source))
        try:
            if path is None:
                data = bytes(source)  # type: ignore[arg-type]  # the caller's own where they are bytes
                self._source: Source = Bytes(data)
                skeleton, self._entries = scan_bytes(data)
            else:
                self._source, self.folder = OpenFile(path), Folder(path.parent)
                skeleton, self._entries = scan_open(self._source.descriptor)
            self.model.ParseFromString(skeleton)
            self._tensors = [TensorProto.FromString(entry.head) for entry in self._entries]
        except (DecodeError, RuntimeError, ValueError, OSError) as error:
            raise _damaged("it is not a complete ONNX model") from error
        self.size = self._source.size

    def weights(self) -> Weights:
        """The graph's initializers."""
        for tensor, entry in zip(self._tensors, self._entries, strict=True):
            yield tensor, None if entry.raw is None else Raw(self._source, *entry.raw)


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise EngineError(f"There is no model file '{path}'. Check the path; a model given as bytes must be bytes.")
    if path.stat().st_size > LIMITS.file_bytes:
        raise EngineError(
            f"The model file '{path}' has {path.stat().st_size / 2**30:.1f} GiB, more than an ONNX file can "
            f"have. Save large weights as external data."
        )
    return path


def _damaged(what: str) -> EngineError:
    return EngineError(
        f"The model cannot be read: {what}. The file is damaged, cut short or not an ONNX file; export or "
        f"fetch it again."
    )


def _check_opset(version: int) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= version <= newest:
        raise EngineError(
            f"The model uses ONNX opset {version}; opsets {OLDEST_OPSET} to {newest} are supported with the "
            f"installed onnx {onnx.__version__}. Export it with another opset_version, or update onnx."
        )


def _inlined(model: ModelProto) -> ModelProto:
    """The model with its own functions written out in the graph."""
    if not model.functions:
        return model
    bodies = {(f.domain, f.name): {(n.domain, n.op_type) for n in f.node} for f in model.functions}
    for key in bodies:
        _check_not_recursive(key, bodies, ())
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the inliner raises whatever C++ threw
        raise _damaged("a function in it cannot be written out") from error


Key = tuple[str, str]


def _check_not_recursive(key: Key, bodies: dict[Key, set[Key]], path: tuple[Key, ...]) -> None:
    if key in path or len(path) > LIMITS.nesting:
        raise _damaged(f"its function '{key[1]}' calls itself, or calls are nested too deeply")
    for called in bodies[key] & bodies.keys():
        _check_not_recursive(called, bodies, (*path, key))


class Reader:
    """What stays the same for a graph and the graphs inside it."""

    def __init__(self, folder: Folder | None, opsets: Mapping[str, int], file_bytes: int) -> None:
        self.folder = folder
        self.opsets = opsets
        self.file_bytes = file_bytes
        self.budget = Budget(file_bytes)

    def graph(self, proto: GraphProto, outer: set[str], depth: int, weights: Weights | None = None) -> Graph:
        """A graph; `outer` are the names that it may read from around it. weights: its initializers, where they
        are not in `proto`."""
        if depth > LIMITS.nesting or len(proto.node) > LIMITS.nodes:
            raise _damaged("it has far too many nodes, or graphs nested too deeply")
        names = [value.name for value in (*proto.input, *proto.output)]
        if not all(isinstance(name, str) for name in names):
            raise _damaged("a name in it is not text")
        constants = Constants()
        for tensor, raw in weights or ((tensor, None) for tensor in proto.initializer):
            if not isinstance(tensor.name, str):
                raise _damaged("a name in it is not text")
            constants.keep(tensor.name, initializer(tensor, self.folder, raw))
        for sparse in proto.sparse_initializer:
            constants[sparse.values.name] = sparse_to_array(sparse, self.folder, self.budget)
        inputs = tuple(_port(value) for value in proto.input if value.name not in constants)
        known = outer | constants.keys() | {port.name for port in inputs}
        ordered = _ordered(proto.node, known, is_inner=depth > 0)
        known |= {name for node in ordered for name in node.output}
        nodes = tuple(self.node(node, known, depth) for node in ordered)
        outputs = tuple(_port(value) for value in proto.output)
        for port in outputs:
            if port.name not in known:
                raise _damaged(f"nothing computes its output '{port.name}'")
        return Graph(inputs, outputs, nodes, constants, self.opsets, self.file_bytes)

    def node(self, proto: NodeProto, known: set[str], depth: int = 0) -> Node:
        """A node; `known` are the names that graphs inside it may read."""
        texts = (proto.op_type, proto.domain, proto.name, *proto.input, *proto.output)
        if not all(isinstance(text, str) for text in (*texts, *(a.name for a in proto.attribute))):
            raise _damaged("a name in it is not text")  # protobuf gives bytes where UTF-8 is broken
        attributes = {a.name: self.attribute(a, known, depth) for a in proto.attribute}
        domain = "" if proto.domain in DEFAULT_DOMAINS else proto.domain
        name = proto.name or f"{proto.op_type}:{next(iter(proto.output), '')}"
        opset = self.opsets.get(domain, OLDEST_OPSET)
        return Node(proto.op_type, domain, tuple(proto.input), tuple(proto.output), attributes, name, opset, proto)

    def attribute(self, proto: AttributeProto, known: set[str], depth: int) -> Any:
        """An attribute's value as a number, string, tuple, array or Graph; None for other kinds."""
        kind = proto.type
        if kind == AttributeProto.TENSOR:
            return to_array(proto.t, self.folder)
        if kind == AttributeProto.SPARSE_TENSOR:
            return sparse_to_array(proto.sparse_tensor, self.folder, self.budget)
        if kind == AttributeProto.GRAPH:
            return self.graph(proto.g, known, depth + 1)
        if kind == AttributeProto.STRING:
            return proto.s.decode("utf-8", "replace")
        if kind == AttributeProto.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in proto.strings)
        if kind in (AttributeProto.INTS, AttributeProto.FLOATS):
            return tuple(onnx.helper.get_attribute_value(proto))
        return proto.i if kind == AttributeProto.INT else proto.f if kind == AttributeProto.FLOAT else None


def _port(value: ValueInfoProto) -> Port:
    if value.type.WhichOneof("value") not in (None, "tensor_type"):
        raise EngineError(
            f"The model's input or output '{value.name}' is no tensor but a sequence or a map, which cannot "
            f"be given or taken. Export the model with tensors alone."
        )
    tensor = value.type.tensor_type
    dtype = numpy_dtype(tensor.elem_type or onnx.TensorProto.FLOAT).name
    if dtype not in PORT_DTYPES:
        raise EngineError(
            f"The model's input or output '{value.name}' is of the type {dtype}, which cannot be given or "
            f"taken. Export the model with inputs and outputs of floating point of 16 bits or more, integers "
            f"of 8 or more, or bool."
        )
    if not tensor.HasField("shape"):
        return Port(value.name, dtype, None)
    sizes = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None  # 0 is a size; -1 means nothing
        for d in tensor.shape.dim
    )
    return Port(value.name, dtype, tuple(None if isinstance(s, int) and s < 0 else s for s in sizes))


def outer_needs(node: NodeProto) -> set[str]:
    """Names that a node reads, those that graphs inside it take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inner = attribute.g
            own = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            own |= {name for n in inner.node for name in n.output}
            names |= {name for n in inner.node for name in outer_needs(n)} - own
            names |= {v.name for v in inner.output} - own
    return names


def _ordered(nodes: Sequence[NodeProto], known: Iterable[str], is_inner: bool) -> list[NodeProto]:
    """Nodes so that each follows what it reads; the file's order where that already holds."""
    ready = set(known)
    writers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in writers or (name in ready and not is_inner):
                raise _damaged(f"the value '{name}' is computed twice")
            writers[name] = i
    needs = [outer_needs(node) for node in nodes]
    for i, names in enumerate(needs):
        for name in names - ready - writers.keys():
            raise _damaged(f"the node {nodes[i].op_type} reads '{name}', which is no weight, input or result")
    return [nodes[i] for i in _sorted(needs, writers, nodes)]


def _sorted(needs: list[set[str]], writers: dict[str, int], nodes: Sequence[NodeProto]) -> list[int]:
    """Kahn's algorithm over node numbers, smallest first among a list kept in file order."""
    waiting = [{writers[name] for name in names if name in writers} for names in needs]
    readers: dict[int, list[int]] = {}
    for i, before in enumerate(waiting):
        for writer in before:
            readers.setdefault(writer, []).append(i)
    if all(max(before, default=-1) < i for i, before in enumerate(waiting)):
        return list(range(len(nodes)))
    ready = [i for i, before in enumerate(waiting) if not before]
    order: list[int] = []
    while ready:
        i = ready.pop(0)
        order.append(i)
        for reader in readers.get(i, ()):
            waiting[reader].discard(i)
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(nodes):
        stuck = next(i for i in range(len(nodes)) if waiting[i])
        raise _damaged(f"its graph has a cycle, through the node {nodes[stuck].op_type} '{nodes[stuck].name}'")
    return order
