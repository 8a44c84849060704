"""Channels of an ONNX graph: which values share them, which never change, and which nobody needs.

A channel is one neuron or feature map, followed through everything that leaves it apart from the others: batch norms,
activations, pooling, depthwise convolutions, sums of branches, flattening. `_onnx_channel_rules.py` has the operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from sparsify.formats._onnx_file import OnnxModel, array_of
from sparsify.formats._onnx_graph import captured_names


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph that has a channel axis."""

    rank: int
    axis: int
    ids: np.ndarray  # [extent of the axis] int: the channel that each element belongs to
    known: np.ndarray  # [extent] bool: whether the element is the same number wherever and whatever the input
    constant: np.ndarray  # [extent] float32: that number, 0 where it is not known


@dataclass(frozen=True, eq=False)
class Product:
    """A convolution, Gemm or MatMul with a constant weight: where channels end and others begin."""

    node: onnx.NodeProto
    weight: str
    out_axis: int  # of the weight
    in_axis: int
    out: Value
    source: Value | None  # None where the input's channels are not known
    nonzero: np.ndarray  # [out, in] bool: whether anything of the kernel is not 0
    padded: bool  # zeros stand beside the input

    def foldable(self) -> np.ndarray:
        """Elements of the input, [in] bool, whose part in the output is a number that can be added to the bias.

        At a border that is padded with zeros a constant of another value is none.
        """
        assert self.source is not None
        return self.source.known & ((self.source.constant == 0) | (not self.padded))


@dataclass(frozen=True, eq=False)
class Slice:
    """A constant that has one entry for each channel: input number `place` of a node."""

    node: onnx.NodeProto
    place: int
    axis: int
    ids: np.ndarray


@dataclass(eq=False)
class Channels:
    """What the rules find out, node by node."""

    model: OnnxModel
    shapes: dict[str, tuple[int, ...]]  # of values; -1 where an extent is not known
    values: dict[str, Value] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    reshapes: list[tuple[onnx.NodeProto, np.ndarray]] = field(default_factory=list)  # whose target names an extent
    pinned: list[np.ndarray] = field(default_factory=list)  # channels that must stay
    joined: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # channels that go or stay together
    count: int = 0

    def __post_init__(self) -> None:
        graph = self.model.proto.graph
        self.uses = Counter(name for node in graph.node for name in node.input)
        outside = {value.name for value in graph.output}
        outside.update(name for node in graph.node for name in captured_names(node))
        self.outside = outside  # read by what is not a node of this graph

    def fresh(self, count: int) -> np.ndarray:
        """Channels that nothing knows yet."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def pin(self, names: Sequence[str]) -> None:
        """All channels of these values must stay."""
        self.pinned += [self.values[name].ids for name in names if name in self.values]

    def constant(self, name: str) -> np.ndarray | None:
        """A constant's value, or None for anything else."""
        return array_of(self.model.tensors[name]) if name in self.model.tensors else None

    def evaluate(self, node: onnx.NodeProto, out: Value) -> Value:
        """`out` with the constants that the node makes of its inputs' ones; none where that cannot be told."""
        from onnx.reference import ReferenceEvaluator

        feeds: dict[str, np.ndarray] = {}
        for name in node.input:
            value, array = self.values.get(name), self.constant(name) if name else None
            if value is not None:
                shape = [1] * value.rank
                shape[value.axis] = len(value.ids)
                feeds[name] = value.constant.reshape(shape)
            elif array is not None:
                feeds[name] = array
        ports = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ]
        results = [helper.make_empty_tensor_value_info(node.output[0])]
        graph = helper.make_graph([node], "node", ports, results)
        try:
            model = helper.make_model(graph, opset_imports=self.model.proto.opset_import)
            with np.errstate(all="ignore"):
                found = np.asarray(ReferenceEvaluator(model).run(list(node.output), feeds)[0])  # type: ignore[index]
        except Exception:  # whatever numpy or onnx raise: nothing is known then, and the channels stay
            return out
        flat = found.reshape(-1)
        if flat.size != len(out.ids) or found.dtype != np.float32:
            return out
        known = out.known & np.isfinite(flat)
        return Value(out.rank, out.axis, out.ids, known, np.where(known, flat, np.float32(0)))


def live_channels(channels: Channels) -> tuple[np.ndarray, np.ndarray]:
    """Channels that are needed and those that stay, [channels] bool each; those that are tied together agree.

    A channel is needed where something reads it that is not a product, or where a product that is needed multiplies
    it by anything but 0 and it is not a constant that fits into the bias. One channel of each product stays even if
    none is needed, because no runtime takes an empty tensor; what it holds does not matter.
    """
    groups = _groups(channels)
    needed = np.zeros(channels.count, bool)
    for ids in channels.pinned:
        needed[groups[ids]] = True
    _spread(channels.products, groups, needed)
    stay = needed.copy()
    for product in reversed(channels.products):
        outputs = groups[product.out.ids]
        if not stay[outputs].any():
            stay[outputs[0]] = True
    return needed[groups], stay[groups]


def _spread(products: Sequence[Product], groups: np.ndarray, live: np.ndarray) -> None:
    """Mark what is needed for what is marked, until nothing is added."""
    changed = True
    while changed:
        changed = False
        for product in reversed(products):
            if product.source is None:
                continue
            needed = product.nonzero[live[groups[product.out.ids]]].any(axis=0) & ~product.foldable()
            inputs = groups[product.source.ids[needed]]
            if not live[inputs].all():
                live[inputs] = True
                changed = True


def _groups(channels: Channels) -> np.ndarray:
    """For each channel the smallest one that it is tied to, directly or over others."""
    parents = list(range(channels.count))

    def root(channel: int) -> int:
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    for left, right in channels.joined:
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            first, second = sorted((root(one), root(other)))
            parents[second] = first
    return np.array([root(channel) for channel in range(channels.count)], int)
