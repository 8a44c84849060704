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
    shapes = _shapes(model.outline())
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
        uses = math.prod(shapes.get(node.output[0], (0,))) // shape[0]
        layers[name] = Layer(name, shape, earlier + uses, sparse=not depthwise)
    return list(layers.values())


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every value for one sample: unknown leading dimensions count as 1; others leave it out."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, EncodeError, ValueError):
        return {}
    found = {}
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        extents = [d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim]
        if extents:
            found[value.name] = (1, *extents[1:])
    return found


def _attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
