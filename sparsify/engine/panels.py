"""A dense layer's numbers in the order of their use, for kernels that keep some output channels in registers."""

from __future__ import annotations

import numpy as np

from sparsify.engine.layout import Planes, up
from sparsify.engine.memory import Written
from sparsify.engine.program import Convolution, Linear
from sparsify.engine.sliding import taps
from sparsify.engine.unread import Unread


def groups_of(operation: Convolution | Linear) -> int:
    """Groups of channels that have nothing to do with each other."""
    return operation.groups if isinstance(operation, Convolution) else 1


def in_panels(
    operation: Convolution | Linear, input: Planes, together: int, multiple: int
) -> tuple[np.ndarray, np.ndarray, Written]:
    """Shift of each column in bytes, records of panels, and the panels' numbers.

    A panel is up to `together` channels: their biases, then their weights column by column, filled up to a
    `multiple` of channels. records: int64 [panels, 4] of where its numbers begin and its input begins (bytes),
    first channel, channels.
    """
    shape, groups = operation.weight.shape, groups_of(operation)
    rows, inner = shape[0] // groups, shape[1]
    offsets = taps(operation, shape[2:], input).ravel() if isinstance(operation, Convolution) else np.zeros(1)
    shifts = (np.arange(inner)[:, None] * input.channel + offsets[None, :]).ravel() * 4
    records, length = [], 0
    for group in range(groups):
        for start in range(0, rows, together):
            count = min(rows - start, together)
            records.append((length * 4, group * inner * input.channel * 4, group * rows + start, count))
            length += (1 + len(shifts)) * up(count, multiple)

    def write(panels: np.ndarray) -> None:
        weight = operation.weight if isinstance(operation.weight, Unread) else np.asarray(operation.weight)
        ends = [*(begin for begin, *_ in records[1:]), length * 4]
        for (begin, _, first, count), end in zip(records, ends, strict=True):
            panel = panels[begin // 4 : end // 4].reshape(1 + len(shifts), -1)
            panel[0, :count] = operation.bias[first : first + count]
            panel[1:, :count] = weight[first : first + count].reshape(count, -1).T

    return shifts.astype(np.int32), np.array(records, np.int64), Written(length, write)
