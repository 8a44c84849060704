"""Conv and pools: operators that slide a window over one or two axes."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from sparsify.engine.front.builder import Builder, Unsupported
from sparsify.engine.front.graph import Node
from sparsify.engine.front.registry import importer
from sparsify.engine.program import Convolution, Pool, Reduce, Shape

Pair = tuple[int, int]


def as_plane(b: Builder, name: str) -> str:
    """[n, c, l] as [n, c, 1, l]; [n, c, h, w] as it is."""
    shape = b.shape(name)
    if len(shape) == 3:
        return b.reshape(name, (*shape[:2], 1, shape[2]))
    if len(shape) != 4:
        raise Unsupported(f"windows over {len(shape) - 2} axes")
    return name


def as_before(b: Builder, name: str, rank: int, output: str) -> None:
    """Undo `as_plane`, under the name of the node's output."""
    if rank == 3:
        n, c, _, length = b.shape(name)
        b.reshape(name, (n, c, length), output)
    else:
        b.alias(output, name)


def pair(values: Any, default: int) -> Pair:
    """An attribute of one or two numbers for height and width; a missing height gets the default."""
    values = tuple(values)
    if len(values) == 1:
        return (default, values[0])
    if len(values) != 2:
        raise Unsupported(f"windows over {len(values)} axes")
    return (values[0], values[1])


def window(b: Builder, node: Node, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Stride, dilation and padding of a node, for [n, c, h, w]."""
    ones = (1,) * len(kernel)
    stride = tuple(node.get("strides", ones))
    dilation = tuple(node.get("dilations", ones))
    size = b.shape(node.input(0))[2:]
    if len(stride) != len(kernel) or len(dilation) != len(kernel) or len(size) != len(kernel):
        raise ValueError(f"strides {stride} and dilations {dilation} do not fit the kernel {kernel}")
    if min(*stride, *dilation, *kernel) < 1:
        raise ValueError(f"kernel {kernel}, strides {stride} and dilations {dilation} must be positive")
    pads = _pads(node, size, kernel, stride, dilation)
    before, after = pair(pads[: len(kernel)], 0), pair(pads[len(kernel) :], 0)
    if min(*before, *after) < 0:
        raise Unsupported("negative padding")
    padding = (*before, *after)
    return {"stride": pair(stride, 1), "dilation": pair(dilation, 1), "padding": padding}


def _pads(
    node: Node,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """Padding before each axis, then after each."""
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(node.get("pads", (0,) * (2 * len(kernel))))
        if len(pads) != 2 * len(kernel):
            raise ValueError(f"pads {pads} do not fit the kernel {kernel}")
        return pads
    if auto == "VALID":
        return (0,) * (2 * len(kernel))
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"there is no auto_pad {auto!r}")
    whole = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        whole.append(max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n))
    small = [p // 2 for p in whole]
    large = [p - p // 2 for p in whole]
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


@importer("Conv")
def conv(b: Builder, node: Node) -> None:
    weight = b.weight(node.input(1))  # [o, c / groups, kernel...]
    if weight is None:
        raise Unsupported("a weight that is computed")
    bias = b.need_constant(node.input(2)) if node.input(2) else np.zeros(weight.shape[0], np.float32)
    given = window(b, node, weight.shape[2:])
    source = as_plane(b, node.input(0))
    if weight.ndim == 3:
        weight = weight.reshape(*weight.shape[:2], 1, weight.shape[2])
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {bias.shape} does not fit the weight {weight.shape}")
    operation = Convolution(
        source, b.fresh(node.output(0)), weight, bias, groups=node.get("group", 1), name=node.name, **given
    )
    as_before(b, b.emit(operation), len(b.shape(node.input(0))), node.output(0))


@importer("MaxPool", "AveragePool")
def pool(b: Builder, node: Node) -> None:
    if node.output(1):
        raise Unsupported("the places of the maxima")
    kind: Literal["max", "average"] = "max" if node.operator == "MaxPool" else "average"
    kernel = tuple(node.get("kernel_shape", ()))
    given = window(b, node, kernel)
    count_padding = bool(node.get("count_include_pad", 0))
    source = as_plane(b, node.input(0))
    flat_kernel = pair(kernel, 1)
    if node.get("ceil_mode", 0):
        widened = _ceiled(b.shape(source)[2:], flat_kernel, **given)
        if widened != given["padding"] and count_padding:
            raise Unsupported("an average that counts padding but not what ceil_mode adds")
        given["padding"] = widened
    output = b.fresh(node.output(0))
    operation = Pool(kind, source, output, flat_kernel, count_padding=count_padding, **given)
    as_before(b, b.emit(operation), len(b.shape(node.input(0))), node.output(0))


def _ceiled(size: Shape, kernel: Pair, stride: Pair, dilation: Pair, padding: tuple[int, ...]) -> tuple[int, ...]:
    """Padding with its end widened so that the last, incomplete window counts, unless all in padding."""
    after = []
    for n, k, s, d, head, tail in zip(size, kernel, stride, dilation, padding[:2], padding[2:], strict=True):
        reach = d * (k - 1) + 1
        places = math.ceil((n + head + tail - reach) / s) + 1
        if (places - 1) * s >= n + head:
            places -= 1
        after.append(max(tail, (places - 1) * s + reach - n - head))
    return (*padding[:2], *after)


@importer("GlobalAveragePool", "GlobalMaxPool")
def global_pool(b: Builder, node: Node) -> None:
    kind: Literal["mean", "max"] = "mean" if node.operator == "GlobalAveragePool" else "max"
    axes = tuple(range(2, len(b.shape(node.input(0)))))
    b.emit(Reduce(kind, node.input(0), node.output(0), axes))
