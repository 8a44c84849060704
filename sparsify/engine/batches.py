"""Large batches in parts: what lies between two operations should fit in a cache.

A batch of 64 images through a whole layer at a time goes out to memory and back for each layer. The same
batch in parts of 16 stays in the cache, for the price of reading the weights four times. Networks of dense
convolutions gain nothing from images side by side, so they run in smaller parts yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparsify.engine.executable import Executable, Row
from sparsify.engine.program import (
    Convolution,
    Elementwise,
    Linear,
    Operation,
    Pool,
    Program,
    Rearrange,
    Reduce,
    Softmax,
    reads,
    writes,
)

_BYTES = 12  # of code and weights for each non-zero
_DENSE = 0.5  # density from which a layer is dense
_USES = 16  # of each weight in an image, so that reading it again is cheap


class Batches:
    """Runs a program over a batch with an executable for a part of it."""

    def __init__(self, program: Program, part: Executable, count: int) -> None:
        """`part` is compiled for a `count`-th of the batch of `program`."""
        self.program = replace(program, operations=())
        self._part, self._count = part, count

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As Executable.run."""
        values = [self.program.values[name] for name in self.program.outputs]
        outputs = [np.empty(value.shape, value.dtype) for value in values]
        for number in range(self._count):
            self._part.run(
                [self._slice(array, number) for array in inputs],
                [self._slice(array, number) for array in outputs],
            )
        return outputs

    def _slice(self, array: np.ndarray, number: int) -> np.ndarray:
        size = len(array) // self._count
        return array[number * size : (number + 1) * size]

    def report(self) -> list[Row]:
        """As Executable.report, of all parts together."""
        count = self._count
        return [
            replace(
                row,
                gflop=row.gflop * count,
                predicted=row.predicted * count,
                measured=row.measured * count,
                why=f"{row.why}, {count} parts of the batch",
            )
            for row in self._part.report()
        ]

    @property
    def bytes(self) -> int:
        """As Executable.bytes."""
        return self._part.bytes


def part_size(program: Program, lanes: int, most: int) -> int:
    """Images to run at a time so that no operation's values take more than `most` bytes: a divisor of the
    batch, and of whole vectors of `lanes` images where that is possible. The whole batch if the program does
    anything but map each image to its own result, or if its weights, to be read again for each part, take
    more than `most` bytes themselves - unless it is dense, and computes far longer than it reads."""
    images = _images(program)
    weights = sum(getattr(op, "nonzeros", 0) for op in program.operations)
    is_dense = images is not None and _is_dense(program, weights)
    if images is None or (weights * _BYTES > most and not is_dense):
        return program.inputs[0].shape[0] if program.inputs and program.inputs[0].shape else 1
    largest = max(
        sum(int(np.prod(program.values[name].shape)) * 4 for name in (*reads(op), *writes(op)))
        for op in program.operations
    )
    fitting = [m for m in range(1, images + 1) if images % m == 0 and m * largest <= most * images] or [1]
    if is_dense:  # one image after another, the layout for dense layers
        return max([m for m in fitting if m < lanes // 2] or fitting[:1])
    whole = [m for m in fitting if m % lanes == 0]
    return max(whole or fitting)


def _is_dense(program: Program, weights: int) -> bool:
    """Whether most of the work is in dense convolutions, depthwise ones aside, and weights are used often."""
    work = dense = 0
    for op in program.operations:
        if isinstance(op, Convolution | Linear):
            positions = int(np.prod(program.values[op.output].shape[2:])) if isinstance(op, Convolution) else 1
            work += op.nonzeros * positions
            if isinstance(op, Convolution) and op.weight.shape[1] > 1 and op.nonzeros >= _DENSE * op.weight.size:
                dense += op.nonzeros * positions
    return 2 * dense > work >= _USES * weights


def _images(program: Program) -> int | None:
    """The batch size of a program that treats every image alike; None for any other program."""
    sizes = {value.shape[:1] for value in program.values.values()}
    floats = all(value.dtype == "float32" for value in program.values.values())
    if len(sizes) != 1 or sizes == {()} or not floats or program.constants or not program.operations:
        return None
    return next(iter(sizes))[0] if all(_by_image(op, program) for op in program.operations) else None


def _by_image(operation: Operation, program: Program) -> bool:
    """Whether each image's result depends on nothing but that image."""
    if isinstance(operation, Convolution | Pool):
        return True
    if isinstance(operation, Linear):
        return len(program.values[operation.input].shape) > 1
    rank = max(len(program.values[name].shape) for name in (*reads(operation), *writes(operation)))
    if isinstance(operation, Elementwise):
        same = all(len(program.values[name].shape) == rank for name in (*reads(operation), *writes(operation)))
        constants = [c for c in operation.inputs if not isinstance(c, str)]
        return same and all(c.ndim < rank or c.shape[0] == 1 for c in constants)
    if isinstance(operation, Reduce):
        return bool(operation.axes) and all(axis % rank != 0 for axis in operation.axes)
    if isinstance(operation, Softmax):
        return operation.axis % rank != 0
    return isinstance(operation, Rearrange) and operation.kind == "reshape"


def resized(program: Program, images: int) -> Program:
    """The same program for another batch size."""
    values = {name: replace(value, shape=(images, *value.shape[1:])) for name, value in program.values.items()}
    return replace(program, inputs=tuple(values[value.name] for value in program.inputs), values=values)
