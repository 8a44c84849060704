"""Nodes that no importer takes: written out as ONNX's function of simpler nodes, or left to onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from sparsify.engine.foreign import first_line, foreign_session
from sparsify.engine.front.builder import Builder
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.reading import outer_needs
from sparsify.engine.front.tensors import FLOATS, dtype_of
from sparsify.engine.program import Foreign, Value
from sparsify.engine.unread import canonical
from sparsify.errors import EngineError

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")
DOUBTFUL = ("Loop", "Scan", "SequenceMap")  # their bodies may run without end: never while a model is opened
RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


class DataDependent(Exception):
    """The shape of a node's result depends on what is computed, not only on the shapes of the inputs."""


def is_foldable(node: Node) -> bool:
    """Whether a node of constant inputs may be computed when the model is opened."""
    return node.operator not in DOUBTFUL + RANDOM


def function_body(b: Builder, node: Node) -> list[NodeProto] | None:
    """A node written out in simpler ones, as the ONNX standard defines it; None where it does not.

    Names inside the body are made the node's own.
    """
    try:
        schema: Any = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    body = onnx.FunctionProto()
    if schema.has_function:
        body.CopyFrom(schema.function_body)
    elif schema.has_context_dependent_function:
        types = [_type(b.values[name]).SerializeToString() if name else b"" for name in node.inputs]
        try:
            text = schema.get_context_dependent_function(simplified(node.proto).SerializeToString(), types)
        except (RuntimeError, onnx.defs.SchemaError):
            return None
        body.ParseFromString(text)
    else:
        return None
    if any(a.type == AttributeProto.GRAPH for n in body.node for a in n.attribute):
        return None
    return _renamed_body(body, node, schema)


def _renamed_body(body: onnx.FunctionProto, node: Node, schema: onnx.defs.OpSchema) -> list[NodeProto]:
    given = {a.name: a for a in simplified(node.proto).attribute}
    defaults = {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    names = {inner: node.input(i) for i, inner in enumerate(body.input)}
    names |= {inner: node.output(i) for i, inner in enumerate(body.output) if node.output(i)}
    prefix = node.outputs[0]
    nodes = []
    for proto in body.node:
        new = NodeProto(op_type=proto.op_type, domain=proto.domain, name=node.name)
        new.input.extend(names.get(name, f"{prefix}/{name}") if name else "" for name in proto.input)
        new.output.extend(names.get(name, f"{prefix}/{name}") if name else "" for name in proto.output)
        for attribute in proto.attribute:
            source = given.get(attribute.ref_attr_name, defaults.get(attribute.ref_attr_name))
            if not attribute.ref_attr_name:
                source = attribute
            if source is not None:
                added = new.attribute.add()
                added.CopyFrom(source)
                added.name = attribute.name
        nodes.append(new)
    return nodes


def simplified(proto: NodeProto) -> NodeProto:
    """A node with all its floating point made float32, graphs inside included."""
    new = NodeProto()
    new.CopyFrom(proto)
    for attribute in new.attribute:
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in FLOATS:
            attribute.i = TensorProto.FLOAT
        if attribute.type == AttributeProto.TENSOR:
            _simplify_tensor(attribute.t)
        for graph in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            _simplify_graph(graph)
    return new


def _simplify_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS and tensor.data_type != TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(canonical(numpy_helper.to_array(tensor)), tensor.name))


def _simplify_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _simplify_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [simplified(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _type(value: Value) -> onnx.TypeProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    sizes = [None if size < 0 else size for size in value.shape]
    return onnx.helper.make_tensor_type_proto(element, sizes)


def _model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Value],
    constants: Mapping[str, Array],
    outputs: Iterable[onnx.ValueInfoProto],
    opsets: Mapping[str, int],
) -> ModelProto:
    graph = onnx.helper.make_graph(
        list(nodes),
        "foreign",
        [onnx.helper.make_value_info(name, _type(value)) for name, value in inputs.items()],
        list(outputs),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model: ModelProto = onnx.helper.make_model(graph, opset_imports=imports)
    model.ir_version = onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    return model


def foreign(
    b: Builder, nodes: Sequence[Node], outputs: Sequence[onnx.ValueInfoProto], opsets: Mapping[str, int]
) -> tuple[Foreign, list[Value]]:
    """Nodes as one Foreign operation, with the values that it writes; a size of -1 is not known."""
    protos = [simplified(node.proto) for node in nodes]
    inside = {name for proto in protos for name in proto.output}
    outside = sorted({name for proto in protos for name in outer_needs(proto)} - inside)
    computed = {name: b.values[b.resolve(name)] for name in outside if b.resolve(name) not in b.constants}
    constants = {name: b.constants[b.resolve(name)] for name in outside if name not in computed}
    # A damaged file's names may be bytes that are no text.
    operators = tuple(dict.fromkeys(str(node.operator) for node in nodes))
    try:
        model = _model(protos, computed, constants, outputs, opsets)
        written = _inferred(model)
        text = _accepted(model)
    except (ValueError, TypeError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(
            f"The operators {', '.join(operators)} cannot be handed to onnxruntime: {first_line(error)} "
            f"The model is probably not valid."
        ) from error
    reads = tuple(b.resolve(name) for name in computed)
    return Foreign(reads, tuple(value.name for value in outputs), text, operators), written


def _accepted(model: ModelProto) -> bytes:
    """The model as bytes; without its inputs' shapes where onnxruntime, knowing more now, is stricter."""
    text = model.SerializeToString()
    try:
        foreign_session(text, 1)
    except EngineError:
        for value in model.graph.input:
            value.type.tensor_type.ClearField("shape")
        text = model.SerializeToString()
    return text


def _inferred(model: ModelProto) -> list[Value]:
    """The outputs' shapes, as far as the ONNX package can tell."""
    small = {t.name for t in model.graph.initializer if len(t.raw_data) <= 2**16}
    sketch = ModelProto()
    sketch.CopyFrom(model)
    for tensor in model.graph.initializer:
        if tensor.name not in small:
            element = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            sketch.graph.input.append(onnx.helper.make_value_info(tensor.name, element))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in small]
    del sketch.graph.initializer[:]
    sketch.graph.initializer.extend(kept)
    inferred = onnx.shape_inference.infer_shapes(sketch, strict_mode=False, data_prop=True)
    values = []
    for output in inferred.graph.output:
        kind = output.type.tensor_type
        sizes = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        known = kind.elem_type and kind.HasField("shape")
        values.append(Value(output.name, sizes, dtype_of(kind.elem_type)) if known else Value(output.name, (-1,)))
    return values
