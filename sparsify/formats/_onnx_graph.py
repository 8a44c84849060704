"""The layers in an ONNX graph that any program wrote: which weights do the work, and how often."""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import EncodeError

from sparsify.formats._onnx_file import OnnxModel
from sparsify.topology.costs import Layer


def find_layers(model: OnnxModel) -> list[Layer]:
    """Weights of Conv, Gemm and MatMul nodes that are initializers, in the graph's order.

    Shapes are given as [out, in / groups, kernel...]. Positions are 0 where shape inference cannot tell.
    """
    shapes = value_shapes(model)
    weights = {n: tensor.shape for n, tensor in model.tensors.items() if len(tensor.shape) > 1 and tensor.size}
    layers: dict[str, Layer] = {}
    for node in model.proto.graph.node:
        whole = len(node.input) > 1 and len(node.output) == 1
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not whole or node.input[1] not in weights:
            continue
        name = node.input[1]
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB"))
        shape = tuple(reversed(weights[name])) if transposed else weights[name]
        depthwise = node.op_type == "Conv" and _attribute(node, "group", 1) > 1 and shape[1] == 1
        earlier = layers[name].positions if name in layers else 0
        # One sample: leading dimensions count as 1, and others that are not known leave it at 0.
        extents = shapes.get(node.output[0], ())[1:]
        uses = math.prod(max(extent, 0) for extent in extents) // shape[0] if extents else 0
        layers[name] = Layer(name, shape, earlier + uses, sparse=not depthwise)
    return list(layers.values())


def value_shapes(model: OnnxModel) -> dict[str, tuple[int, ...]]:
    """Shape of every value, as far as shape inference can tell; extents that it cannot tell are -1."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model.outline())
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError):
        return {}
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
        if value.type.tensor_type.HasField("shape")
    }


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of control flow may take from around them."""
    graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    found: set[str] = set()
    for graph in graphs:
        for inner in graph.node:
            found.update(inner.input)
            found |= captured_names(inner)
        found.update(value.name for value in graph.output)
    return found


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
