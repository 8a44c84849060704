"""ConvTranspose as the convolution that it is, over an input with zeros between its elements."""

from __future__ import annotations

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.operators.layout import cut
from sparsify.engine.front.operators.windows import as_before, as_plane, pair
from sparsify.engine.front.registry import importer
from sparsify.engine.program import Convolution


@importer("ConvTranspose")
def conv_transpose(b: Builder, node: Node) -> None:
    weight = b.need_constant(node.input(1))  # [c, o / groups, kernel...]
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "") or node.get("output_shape"):
        raise Unsupported("padding that follows from the output's shape")
    rank, ones = weight.ndim - 2, (1,) * (weight.ndim - 2)
    stride = pair(node.get("strides", ones), 1)
    dilation = pair(node.get("dilations", ones), 1)
    more = pair(node.get("output_padding", (0,) * rank), 0)
    pads = tuple(node.get("pads", (0,) * (2 * rank)))
    if len(pads) != 2 * rank or min(*stride, *dilation) < 1:
        raise ValueError(f"pads {pads} or strides {stride} do not fit the weight {weight.shape}")
    source = as_plane(b, node.input(0))
    if rank == 1:
        weight = weight[:, :, None, :]
    weight = _turned(weight, node.get("group", 1))
    bias = b.need_constant(node.input(2)) if node.input(2) else np.zeros(len(weight), np.float32)
    if bias.shape != weight.shape[:1] or b.shape(source)[1] != weight.shape[1] * node.get("group", 1):
        raise ValueError(f"weight {weight.shape} and bias {bias.shape} do not fit the input {b.shape(source)}")
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    before = [r - p for r, p in zip(reach, pair(pads[:rank], 0), strict=True)]
    after = [r - p + m for r, p, m in zip(reach, pair(pads[rank:], 0), more, strict=True)]
    top, left, bottom, right = (max(0, size) for size in (*before, *after))
    operation = Convolution(
        _spread(b, source, stride), b.fresh(node.output(0)), weight, bias,
        padding=(top, left, bottom, right), dilation=dilation, groups=node.get("group", 1), name=node.name,
    )  # fmt: skip
    result = b.emit(operation)
    if min(*before, *after) < 0:  # cut by more than the kernel reaches
        sizes = zip(before, after, b.shape(result)[2:], strict=True)
        result = cut(b, result, (2, 3), [(max(0, -head), size - max(0, -tail), 1) for head, tail, size in sizes])
    as_before(b, result, len(b.shape(node.input(0))), node.output(0))


def _turned(weight: Array, groups: int) -> Array:
    """[c, o / groups, kh, kw] as a convolution has it: [o, c / groups, kh, kw], taps in the opposite order."""
    if groups < 1 or len(weight) % groups:
        raise ValueError(f"{len(weight)} channels cannot stand in {groups} groups")
    parts = weight.reshape(groups, len(weight) // groups, *weight.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(parts.reshape(-1, *parts.shape[2:])[..., ::-1, ::-1])


def _spread(b: Builder, source: str, stride: tuple[int, int]) -> str:
    """The elements of each plane with stride - 1 zeros between them."""
    if stride == (1, 1):
        return source
    n, c, h, w = b.shape(source)
    down, right = stride
    apart = b.reshape(source, (n, c, h, 1, w, 1))
    padded = b.rearrange("pad", apart, before=(0,) * 6, after=(0, 0, 0, down - 1, 0, right - 1), value=0.0)
    whole = b.reshape(padded, (n, c, h * down, w * right))
    return cut(b, whole, (2, 3), [(0, (h - 1) * down + 1, 1), (0, (w - 1) * right + 1, 1)])
