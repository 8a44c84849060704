"""Transposing a matrix in registers, a square of one vector's width at a time."""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import F32, I32, Body, Module


def emit(module: Module, name: str, strip: int) -> None:
    """Add `void name(buffers, constants, tile)`, which copies a matrix [images, channels].

    Of the two buffers one has channels next to each other and the other images. Parameters: for the source
    and then the target its start and the steps from image to image and from channel to channel (floats);
    then the numbers of images and of channels. A tile is `strip` channels.
    """
    body = Body(module, name)
    b, width = body.builder, module.width
    buffers, constants, tile = body.arguments
    numbers = body.numbers(body.pointer(constants, 0), 8)
    images, channels = numbers[6:]
    source, target = (
        (body.at(body.pointer(buffers, i), numbers[3 * i], F32), numbers[3 * i + 1], numbers[3 * i + 2]) for i in (0, 1)
    )
    first = b.mul(tile, body.const(strip))
    last = body.smaller(b.add(first, body.const(strip)), channels)
    by_channel = b.icmp_signed("==", source[2], body.const(1))  # the source's channels are neighbours
    whole_images = b.and_(images, body.const(-width))
    whole_channels = b.add(first, b.and_(b.sub(last, first), body.const(-width)))
    with body.loop(0, whole_images, width) as image, body.loop(first, whole_channels, width) as channel:
        here, there = (
            body.at(p, b.add(b.mul(image.index, i), b.mul(channel.index, c)), F32) for p, i, c in (source, target)
        )
        step = [b.select(by_channel, i, c) for _, i, c in (source, (None, target[2], target[1]))]
        rows = [
            b.load(body.at(here, b.mul(step[0], body.const(k)), F32), typ=module.vector, align=4) for k in range(width)
        ]
        for k, column in enumerate(square(body, rows)):
            b.store(column, body.at(there, b.mul(step[1], body.const(k)), F32), align=4)
    # What no square covers: the last images of all channels, and the last channels of the other images.
    zero = body.const(0)
    for edge in ((whole_images, images, first, last), (zero, whole_images, whole_channels, last)):
        with body.loop(edge[0], edge[1]) as image, body.loop(edge[2], edge[3]) as channel:
            places = [b.add(b.mul(image.index, i), b.mul(channel.index, c)) for _, i, c in (source, target)]
            body.store(body.load(source[0], places[0], F32), target[0], places[1])
    body.done()


def square(body: Body, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of a square of vectors: as often as its width can be halved, row i is interleaved with
    the row half a square below."""
    width, half = len(rows), len(rows) // 2
    kind = ir.VectorType(I32, width)
    low = ir.Constant(kind, [i // 2 + width * (i % 2) for i in range(width)])
    high = ir.Constant(kind, [half + i // 2 + width * (i % 2) for i in range(width)])
    for _ in range(width.bit_length() - 1):
        pairs = list(zip(rows[:half], rows[half:], strict=True))
        rows = [body.builder.shuffle_vector(a, c, order) for a, c in pairs for order in (low, high)]
    return rows
