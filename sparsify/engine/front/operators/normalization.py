"""Batch, layer, group and instance normalisation."""

from __future__ import annotations

import math

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.registry import importer
from sparsify.engine.front.shapes import normal_axis
from sparsify.engine.program import LayerNorm

GROUP_NORM_PER_CHANNEL = 21  # the opset in which scale and bias became one number a channel


def scaled(b: Builder, source: str, scale: Array, shift: Array, output: str) -> None:
    """y = scale[c] x + shift[c] over [n, c, ...]."""
    along = (-1,) + (1,) * (len(b.shape(source)) - 2)
    with np.errstate(over="ignore"):  # infinity then, as in float32 throughout
        scale, shift = (part.astype(np.float32).reshape(along) for part in (scale, shift))
    b.elementwise("add", b.elementwise("mul", source, scale), shift, output=output)


@importer("BatchNormalization")
def batch_norm(b: Builder, node: Node) -> None:
    if node.get("training_mode", 0) or any(node.outputs[1:]):
        raise Unsupported("statistics of the batch")
    if not node.get("spatial", 1):
        raise Unsupported("statistics of each place")
    channels = b.shape(node.input(0))[1]
    parts = [b.need_constant(name).astype(np.float64) for name in node.inputs[1:5]]
    if any(part.shape != (channels,) for part in parts):
        raise ValueError(f"statistics do not fit {channels} channels")
    scale, bias, mean, variance = parts
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
    scaled(b, node.input(0), factor, bias - mean * factor, node.output(0))


@importer("LayerNormalization")
def layer_norm(b: Builder, node: Node) -> None:
    if any(node.outputs[1:]):
        raise Unsupported("mean and deviation as outputs")
    shape = b.shape(node.input(0))
    axis = normal_axis(node.get("axis", -1), len(shape))
    scale = np.broadcast_to(b.need_constant(node.input(1)), shape[axis:])
    bias = np.broadcast_to(b.need_constant(node.input(2)), shape[axis:]) if node.input(2) else None
    epsilon = node.get("epsilon", 1e-5)
    b.emit(LayerNorm(node.input(0), node.output(0), scale, bias, epsilon, axis))


def _in_groups(b: Builder, node: Node, groups: int) -> str:
    """x normalised over each image's groups of channels, in x's shape."""
    shape = b.shape(node.input(0))
    flat = (shape[0], groups, math.prod(shape[1:]) // groups)
    ones = np.ones(flat[2:], np.float32)
    source = b.reshape(node.input(0), flat)
    epsilon = node.get("epsilon", 1e-5)
    normal = b.emit(LayerNorm(source, b.fresh(node.output(0)), ones, None, epsilon, 2))
    return b.reshape(normal, shape)


@importer("InstanceNormalization")
def instance_norm(b: Builder, node: Node) -> None:
    scale, bias = b.need_constant(node.input(1)), b.need_constant(node.input(2))
    normal = _in_groups(b, node, b.shape(node.input(0))[1])
    scaled(b, normal, scale, bias, node.output(0))


@importer("GroupNormalization")
def group_norm(b: Builder, node: Node) -> None:
    groups, channels = node.get("num_groups", 1), b.shape(node.input(0))[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot stand in {groups} groups")
    scale, bias = b.need_constant(node.input(1)), b.need_constant(node.input(2))
    if node.opset < GROUP_NORM_PER_CHANNEL:
        scale, bias = (np.repeat(part, channels // groups) for part in (scale, bias))
    scaled(b, _in_groups(b, node, groups), scale, bias, node.output(0))
