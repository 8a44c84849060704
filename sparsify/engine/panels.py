"""A dense layer's numbers in the order of their use, for kernels that keep some output channels in registers."""

from __future__ import annotations

import numpy as np

from sparsify.engine.layout import Planes, up
from sparsify.engine.program import Convolution, Linear
from sparsify.engine.sliding import taps


def groups_of(operation: Convolution | Linear) -> int:
    """Groups of channels that have nothing to do with each other."""
    return operation.groups if isinstance(operation, Convolution) else 1


def in_panels(
    operation: Convolution | Linear, input: Planes, together: int, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift of each column in bytes, records of panels, and the panels' numbers.

    A panel is up to `together` channels: their biases, then their weights column by column, filled up to a
    `multiple` of channels. records: int64 [panels, 4] of where its numbers begin and its input begins (bytes),
    first channel, channels.
    """
    weight, groups = np.asarray(operation.weight), groups_of(operation)
    rows, inner = weight.shape[0] // groups, weight.shape[1]
    offsets = taps(operation, weight.shape[2:], input).ravel() if isinstance(operation, Convolution) else np.zeros(1)
    shifts = (np.arange(inner)[:, None] * input.channel + offsets[None, :]).ravel() * 4
    flat = weight.reshape(len(weight), -1)
    whole, last = divmod(rows, together)
    lanes = groups * (whole * up(together, multiple) + up(last, multiple))
    records, panels, length = [], np.zeros((1 + flat.shape[1]) * lanes, np.float32), 0
    for group in range(groups):
        for start in range(0, rows, together):
            first, count = group * rows + start, min(rows - start, together)
            size = (1 + flat.shape[1]) * up(count, multiple)
            panel = panels[length : length + size].reshape(1 + flat.shape[1], -1)
            panel[0, :count] = operation.bias[first : first + count]
            panel[1:, :count] = flat[first : first + count].T
            records.append((length * 4, group * inner * input.channel * 4, first, count))
            length += size
    return shifts.astype(np.int32), np.array(records, np.int64), panels
