"""A loop over columns for layers where hardly any weight is zero: one piece of code for all row blocks."""

from __future__ import annotations

import numpy as np

from sparsify.engine import blocks
from sparsify.engine.encode import Encoder, encoder
from sparsify.engine.program import Convolution, Linear, Operation
from sparsify.engine.sliding import entries
from sparsify.engine.stage import Context, Proposal, Stage
from sparsify.engine.tiles import Blocked, Layer, blocked_stage, cut_rows, prepare

_RATE = 6e9  # vector multiplications a second and thread, zeros included


def propose(operation: Operation, context: Context) -> Proposal | None:
    """Any Convolution or Linear on planes, where the target has an encoder."""
    encode = encoder(context.target.level)
    if encode is None or not isinstance(operation, Convolution | Linear):
        return None
    layer = prepare(operation, context)
    if layer is None or layer.density < context.tuning.dense_above:
        return None
    rows, per_group = operation.weight.shape[0], operation.weight[0].size
    groups = operation.groups if isinstance(operation, Convolution) else 1
    met = min(groups, -(-encode.rows * groups // rows))  # groups whose columns one row block reads
    seconds = rows * per_group * met * len(layer.where.table) / _RATE / context.threads

    def build() -> Stage:
        blocked = _compile(operation, layer, encode, context.threads)
        return blocked_stage("dense", operation, context, layer, blocked, seconds)

    return Proposal(seconds, build)


def _compile(operation: Convolution | Linear, layer: Layer, encode: Encoder, threads: int) -> Blocked:
    found = entries(operation, layer.input)
    bounds = cut_rows(found.rows, encode.rows, threads, len(layer.where.table))
    edges = np.searchsorted(found.row, bounds)
    codes: dict[tuple[int, int], int] = {}
    pieces, streams, records, length, floats = [], [], [], 0, 0
    for start, stop, a, b in zip(bounds[:-1], bounds[1:], edges[:-1], edges[1:], strict=True):
        shifts, column = np.unique(found.shift[a:b], return_inverse=True)
        weights = np.zeros((len(shifts), stop - start), np.float32)
        weights[column, found.row[a:b] - start] = found.value[a:b]
        kind = (int(stop - start), len(shifts))
        if kind not in codes:
            codes[kind] = length
            text = blocks.looped(*kind, encode, layer.output.channel, operation.epilogue)
            pieces.append(text + b"\xcc" * (-len(text) % 64))
            length += len(pieces[-1])
        part = blocks.column_stream(shifts, weights, operation.bias[start:stop], operation.epilogue)
        records.append((codes[kind], floats * 4, start * layer.output.channel * 4, 0, part.nbytes))
        streams.append(part)
        floats += len(part)
    return Blocked(b"".join(pieces), np.concatenate(streams), np.array(records, np.int64))
