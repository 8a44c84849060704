"""How block functions are cut into tiles: row blocks times panels of positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.engine.layout import Planes
from sparsify.engine.memory import Written
from sparsify.engine.program import Convolution, Linear
from sparsify.engine.sliding import Positions, positions, source, sweep
from sparsify.engine.stage import Context, Stage

_SHARED = 6  # vectors a thread from which threads share positions rather than rows
FAR = 1 << 31  # bytes that a displacement reaches


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer as a kernel that slides over planes sees it."""

    input: Planes
    output: Planes
    where: Positions
    nonzeros: int
    density: float
    panel: int = 0  # vectors of positions in one tile, where that is given


@dataclass(frozen=True, eq=False)
class Blocked:
    """Compiled blocks: their code, their streams and, for each, where it finds both.

    records: int64 [blocks * parts, 3] of code, stream and output plane offset, all bytes. The parts of a block run
    one after the other; in between its sums wait in the output.
    """

    code: tuple[bytes, ...]  # one after the other
    stream: np.ndarray | Written
    records: np.ndarray
    parts: int = 1
    fills: bool = False  # as in Stage


def prepare(operation: Convolution | Linear, context: Context) -> Layer | None:
    """What `operation` is on planes; None where its values do not lie in planes or are out of reach."""
    found = source(operation, context)
    if found is None or operation.weight.size == 0:
        return None
    input, output = found
    if max(input.size, output.size) * 4 >= FAR:
        return None
    stride = operation.stride if isinstance(operation, Convolution) else (1, 1)
    where = positions(input, output, stride, context.target.width)
    return Layer(input, output, where, operation.nonzeros, operation.nonzeros / operation.weight.size)


def shares_positions(vectors: int, threads: int) -> bool:
    """Whether threads share positions, and all read and write where they did in the layer before; else rows."""
    return vectors >= _SHARED * threads


def cut_rows(rows: int, most: int, threads: int, vectors: int) -> np.ndarray:
    """Bounds of row blocks of nearly equal height; a multiple of `threads` of them where there are too few
    `vectors` of positions to share."""
    count = -(-rows // most)
    if count > 1 and not shares_positions(vectors, threads):
        count = -(-count // threads) * threads
    return np.linspace(0, rows, count + 1).round().astype(np.int64)


def panel_length(layer: Layer, context: Context, blocks: int) -> int:
    """Vectors of positions in one tile: as many as leave their input in the second-level cache, and few
    enough to give each thread its tiles."""
    if layer.panel:
        return layer.panel
    vectors, width = len(layer.where.table), context.target.width
    tuning = context.tuning
    fitting = tuning.panel_bytes // (layer.input.channels * width * 4)
    wanted = -(-context.threads * tuning.tiles_per_thread // blocks)  # panels, so that tiles suffice
    longest = max(1, min(tuning.panel, max(fitting, 4), -(-vectors // wanted)))
    if layer.output.lanes > 1:  # whole rows, or equal parts of a row: what reads them waits for no other
        width = layer.output.width
        return longest // width * width or -(-width // -(-width // longest))
    sharing = context.threads if shares_positions(vectors, context.threads) else 1
    each = -(-vectors // sharing)
    least = -(-each // longest)
    panels = min((least, least + 1), key=lambda count: -(-each // count) * count)
    return -(-each // panels)  # equal panels, the same number for each thread


def blocked_stage(
    kernel: str,
    operation: Convolution | Linear,
    context: Context,
    layer: Layer,
    blocked: Blocked,
    seconds: float,
) -> Stage:
    """The stage that runs a layer's blocks over all panels."""
    blocks = len(blocked.records) // blocked.parts
    vectors = len(layer.where.table)
    panel = panel_length(layer, context, blocks)
    residual = operation.epilogue.residual
    reads = (operation.input, residual) if residual is not None else (operation.input,)
    output = len(reads)
    added = 1 if residual is not None else output
    parameters = np.array([blocks, blocked.parts, panel, vectors, output, added], np.int64)
    table, soon = layer.where.table.copy(), np.arange(vectors) + 1
    if layer.output.lanes == 1:  # not of the next panel: another core may be writing to it
        soon = np.minimum(soon + 1, (soon - 1) // panel * panel + panel - 1)
    table[:, 3] = table[np.minimum(soon, vectors - 1), 1]
    flops = 2.0 * layer.nonzeros * layer.where.useful
    layouts = {operation.input: layer.input, operation.output: layer.output}
    if residual is not None:
        layouts[residual] = layer.output
    return Stage(
        kernel=kernel,
        function="sparsify_block",
        reads=reads,
        writes=(operation.output,),
        tiles=blocks * -(-vectors // panel),
        constants=(parameters, blocked.records, table, blocked.stream),
        layouts=layouts,
        replaces=residual,
        code=blocked.code,
        fills=blocked.fills,
        sweep=sweep(operation, layer.input, layer.output, panel, blocks),
        flops=flops,
        density=layer.density,
        seconds=seconds,
        why=f"density {layer.density:.0%}, {blocks} row blocks",
    )
