"""What each ONNX operator does with channels. An operator without a rule keeps all channels that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sparsify.formats._onnx_channels import Channels, Product, Slice, Value
from sparsify.formats._onnx_file import OnnxModel
from sparsify.formats._onnx_graph import value_shapes

DEFAULT_DOMAINS = ("", "ai.onnx")
# Functions of each element alone; further inputs are constants without a channel axis.
ELEMENTWISE = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
    "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
)  # fmt: skip
BROADCAST = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
REDUCE = ("ReduceMax", "ReduceMean", "ReduceMin")
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


def find_channels(model: OnnxModel) -> Channels:
    """Follow the channels of a graph from each product to the next."""
    channels = Channels(model, value_shapes(model))
    for node in model.proto.graph.node:
        rule = RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS and len(node.output) == 1 else None
        result = rule(channels, node) if rule is not None else None
        if result is not None:
            channels.values[node.output[0]] = result
        else:
            channels.pin(node.input)
        channels.pin([name for name in node.output if name in channels.outside])
    return channels


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _convolution(channels: Channels, node: onnx.NodeProto) -> Value | None:
    weight = _own_weight(channels, node.input[1])
    bias = _bias(channels, node, 0 if weight is None else len(weight))
    if weight is None or bias is None:
        return None
    source, groups = channels.values.get(node.input[0]), attribute(node, "group", 1)
    pads = any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if groups == 1:
        return _product(channels, node, weight, (0, 1), 1, bias, pads)
    if source is None or source.axis != 1 or weight.shape[:2] != (len(source.ids), 1) or groups != len(weight):
        return None
    sums = weight.reshape(len(weight), -1).sum(1, dtype=np.float64)
    used = np.any(weight.reshape(len(weight), -1) != 0, axis=1)
    usable = source.known & ((source.constant == 0) | (not pads))
    known = ~used | usable
    constant = np.where(known, bias + np.where(used, sums * source.constant, 0), 0).astype(np.float32)
    channels.slices += [Slice(node, 1, 0, source.ids), *_bias_slice(channels, node, source.ids)]
    return Value(source.rank, 1, source.ids, known, constant)


def _gemm(channels: Channels, node: onnx.NodeProto) -> Value | None:
    weight = _own_weight(channels, node.input[1])
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1 and not attribute(node, "transA", 0)
    if weight is None or not plain:
        return None
    axes = (0, 1) if attribute(node, "transB", 0) else (1, 0)
    bias = _bias(channels, node, weight.shape[axes[0]])
    return None if bias is None else _product(channels, node, weight, axes, 1, bias, False)


def _matmul(channels: Channels, node: onnx.NodeProto) -> Value | None:
    weight = _own_weight(channels, node.input[1])
    shape = channels.shapes.get(node.output[0])
    if weight is None or weight.ndim != 2 or not shape:
        return None
    return _product(channels, node, weight, (1, 0), len(shape) - 1, np.zeros(weight.shape[1]), False)


def _product(
    channels: Channels,
    node: onnx.NodeProto,
    weight: np.ndarray,
    axes: tuple[int, int],
    axis: int,
    bias: np.ndarray,
    padded: bool,
) -> Value:
    """axes: of the weight, outputs and inputs. axis: of channels in input and output. bias: [out] float64."""
    matrix = np.moveaxis(weight, axes, (0, 1)).reshape(weight.shape[axes[0]], weight.shape[axes[1]], -1)
    nonzero = np.any(matrix != 0, axis=2)
    source = channels.values.get(node.input[0])
    if source is not None and (source.axis != axis or len(source.ids) != matrix.shape[1]):
        channels.pin(node.input)
        source = None
    known = ~np.any(nonzero, axis=1)
    constant = np.where(known, bias, 0)
    if source is not None:
        usable = source.known & ((source.constant == 0) | (not padded))
        known = ~np.any(nonzero & ~usable, axis=1)
        given = usable & (source.constant != 0)
        parts = matrix[:, given].sum(axis=2, dtype=np.float64) @ source.constant[given]
        constant = np.where(known, bias + parts, 0)
    shape = channels.shapes.get(node.output[0], ())
    out = Value(max(len(shape), axis + 1), axis, channels.fresh(len(matrix)), known, constant.astype(np.float32))
    channels.products.append(Product(node, node.input[1], *axes, out, source, nonzero, padded))
    channels.slices += _bias_slice(channels, node, out.ids)
    return out


def _own_weight(channels: Channels, name: str) -> np.ndarray | None:
    """A float32 constant of two dimensions or more that nothing else reads."""
    tensor = channels.model.tensors.get(name)
    if tensor is None or tensor.dtype != "F32" or len(tensor.shape) < 2 or not tensor.size:
        return None
    return channels.constant(name) if channels.uses[name] == 1 and name not in channels.outside else None


def _bias(channels: Channels, node: onnx.NodeProto, count: int) -> np.ndarray | None:
    """[count] float64; zeros where there is none, None where it is not a row of constants."""
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros(count)
    tensor = channels.model.tensors.get(node.input[2])
    if tensor is None or tensor.dtype != "F32" or tensor.size not in (1, count) or tensor.shape[:-1] not in ((), (1,)):
        return None
    return np.broadcast_to(tensor.array().reshape(-1).astype(np.float64), (count,))


def _bias_slice(channels: Channels, node: onnx.NodeProto, ids: np.ndarray) -> list[Slice]:
    if len(node.input) < 3 or not node.input[2]:
        return []
    shape = channels.model.tensors[node.input[2]].shape
    return [Slice(node, 2, len(shape) - 1, ids)] if shape and shape[-1] == len(ids) else []


def _same(channels: Channels, node: onnx.NodeProto) -> Value | None:
    """Each element by itself, or each channel by itself with constants that have no channels."""
    source = channels.values.get(node.input[0])
    others = [channels.constant(name) for name in node.input[1:] if name]
    if source is None or any(other is None or other.size > 1 for other in others):
        return None
    return _evaluated(channels, node, source)


def _broadcast(channels: Channels, node: onnx.NodeProto) -> Value | None:
    sources = [channels.values[name] for name in node.input if name in channels.values]
    constants = {i: channels.model.tensors[n] for i, n in enumerate(node.input) if n in channels.model.tensors}
    if not sources or len(sources) + len(constants) < len(node.input):
        return None
    rank = max([value.rank for value in sources] + [len(tensor.shape) for tensor in constants.values()])
    first = sources[0]
    axis = first.axis + rank - first.rank
    if any((v.axis + rank - v.rank, len(v.ids)) != (axis, len(first.ids)) for v in sources):
        return None
    channels.joined += [(first.ids, value.ids) for value in sources[1:]]
    known = np.logical_and.reduce([value.known for value in sources])
    for place, tensor in constants.items():
        own = axis - rank + len(tensor.shape)  # the constant's axis of channels, if it has one
        extent = tensor.shape[own] if own >= 0 else 1
        if extent not in (1, len(first.ids)):
            return None
        if extent > 1:
            channels.slices.append(Slice(node, place, own, first.ids))
        known = known & (tensor.size == extent)  # it is one number for each channel
    return _evaluated(channels, node, Value(rank, axis, first.ids, known, first.constant))


def _evaluated(channels: Channels, node: onnx.NodeProto, like: Value) -> Value:
    result = Value(like.rank, like.axis, like.ids, like.known, np.zeros(len(like.ids), np.float32))
    unknown = Value(like.rank, like.axis, like.ids, np.zeros(len(like.ids), bool), result.constant)
    if not like.known.any():
        return unknown
    found = channels.evaluate(node, result)
    return unknown if found is result else found


def _batch_norm(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source = channels.values.get(node.input[0])
    tensors = [channels.model.tensors.get(name) for name in node.input[1:]]
    whole = len(tensors) == 4 and not attribute(node, "training_mode", 0)
    if source is None or source.axis != 1 or not whole:
        return None
    if any(tensor is None or tensor.shape != (len(source.ids),) for tensor in tensors):
        return None
    channels.slices += [Slice(node, place, 0, source.ids) for place in range(1, 5)]
    return _evaluated(channels, node, source)


def _pool(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source = channels.values.get(node.input[0])
    if source is None or source.axis != 1:
        return None
    bordered = any(attribute(node, "pads", [])) or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    counted = node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0)
    known = source.known
    if counted and (bordered or attribute(node, "ceil_mode", 0)):
        known = known & (source.constant == 0)
    return Value(source.rank, 1, source.ids, known, np.where(known, source.constant, np.float32(0)))


def _reduce(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source = channels.values.get(node.input[0])
    axes = _axes(channels, node)
    if source is None or not axes:
        return None
    axes = [axis % source.rank for axis in axes]
    if source.axis in axes:
        return None
    gone = [] if attribute(node, "keepdims", 1) else axes
    return _moved(source, source.rank - len(gone), source.axis - sum(axis < source.axis for axis in gone))


def _squeeze(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source, axes = channels.values.get(node.input[0]), _axes(channels, node)
    if source is None or not axes:
        return None
    axes = [axis % source.rank for axis in axes]
    if source.axis in axes:
        return None
    return _moved(source, source.rank - len(axes), source.axis - sum(axis < source.axis for axis in axes))


def _flatten(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source = channels.values.get(node.input[0])
    shape = channels.shapes.get(node.input[0], ())
    if source is None or source.axis != 1 or len(shape) < 2 or min(shape[2:], default=1) < 1:
        return None
    factor = math.prod(shape[2:])
    if node.op_type == "Flatten" and attribute(node, "axis", 1) != 1:
        return None
    if node.op_type == "Reshape":
        target = channels.constant(node.input[1])
        if target is None or target.shape != (2,) or target[1] not in (-1, 0, len(source.ids) * factor):
            return None
        if target[1] == 0 and (factor > 1 or attribute(node, "allowzero", 0)):
            return None
        if target[0] not in (0, -1, shape[0]) or (target[0] == 0 and attribute(node, "allowzero", 0)):
            return None
        if target[1] > 0:
            channels.reshapes.append((node, np.repeat(source.ids, factor)))
    repeated = (np.repeat(part, factor) for part in (source.ids, source.known, source.constant))
    return Value(2, 1, *repeated)


def _transpose(channels: Channels, node: onnx.NodeProto) -> Value | None:
    source = channels.values.get(node.input[0])
    if source is None:
        return None
    order = list(attribute(node, "perm", range(source.rank)[::-1]))
    return _moved(source, source.rank, order.index(source.axis))


def _concat(channels: Channels, node: onnx.NodeProto) -> Value | None:
    sources = [channels.values.get(name) for name in node.input]
    if any(source is None for source in sources):
        return None
    found = [source for source in sources if source is not None]
    rank, axis = found[0].rank, found[0].axis
    if any((source.rank, source.axis) != (rank, axis) for source in found) or attribute(node, "axis") % rank != axis:
        return None
    parts = ([s.ids for s in found], [s.known for s in found], [s.constant for s in found])
    return Value(rank, axis, *map(np.concatenate, parts))


def _dropout(channels: Channels, node: onnx.NodeProto) -> Value | None:
    training = channels.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.False_
    return None if training is None or training.any() else channels.values.get(node.input[0])


def _moved(source: Value, rank: int, axis: int) -> Value:
    return Value(rank, axis, source.ids, source.known, source.constant)


def _axes(channels: Channels, node: onnx.NodeProto) -> Sequence[int]:
    """Axes given as an attribute or, in newer opsets, as a constant; none where neither is there."""
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1:
        array = channels.constant(node.input[1])
        given = None if array is None else array.reshape(-1).tolist()
    return given or []


RULES: dict[str, Callable[[Channels, onnx.NodeProto], Value | None]] = {
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _convolution,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _flatten,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(ELEMENTWISE, _same),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCE, _reduce),
}
