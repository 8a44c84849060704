"""Which layout each value gets, and which buffer.

Values that operators slide over get planes; all others lie in C order. Where the lanes of a vector are
positions (small batches), an operator's input and output must have the same pitch, so the values that are
linked by unit-stride operators, residuals and elementwise operations form classes that share one geometry:
the largest that any member needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsify.engine.layout import LINE, Planes, up
from sparsify.engine.numpy_ops import compute
from sparsify.engine.paging import in_bands
from sparsify.engine.program import (
    Chain,
    Convolution,
    Elementwise,
    Linear,
    Operation,
    Pool,
    Program,
    Rearrange,
    Reduce,
    Shape,
    Value,
    reads,
)
from sparsify.engine.sliding import Reach, as_images, has_few_taps, is_direct, reach
from sparsify.engine.target import Target
from sparsify.engine.tuning import Tuning

_WIDER = 1.01  # times the vectors, for lines that threads do not share


def lanes_for(images: int, width: int) -> int:
    """Images side by side in a vector: its width where the batch nearly fills whole vectors, else 1."""
    waste = up(images, width) / images
    return width if images >= width // 2 and waste <= 1.25 else 1


def slides(operation: Operation, program: Program, tuning: Tuning) -> bool:
    """Whether planes are the layout in which `operation` runs best."""
    shapes = {name: as_images(value.shape) for name, value in program.values.items()}
    if isinstance(operation, Convolution | Pool):
        return True
    if isinstance(operation, Linear):
        images = shapes[operation.input]
        return images is not None and images[2] == 1 and images[0] >= tuning.linear_images
    if isinstance(operation, Reduce):
        return is_global_mean(operation, program.values)
    return False


def follows(operation: Operation, program: Program) -> bool:
    """Whether `operation` runs on planes as well as in C order, so that its neighbours decide."""
    return is_flat(operation, program.values) or is_renaming(operation, program.values)


def is_global_mean(operation: Reduce, values: Mapping[str, Value]) -> bool:
    """A mean over height and width."""
    axes = {axis % 4 for axis in operation.axes}
    return operation.kind == "mean" and len(values[operation.input].shape) == 4 and axes == {2, 3}


def is_renaming(operation: Operation, values: Mapping[str, Value]) -> bool:
    """A reshape between [n, c, 1, 1] and [n, c], in which no element moves."""
    if not isinstance(operation, Rearrange) or operation.kind != "reshape":
        return False
    before, after = (values[name] for name in (operation.inputs[0], operation.output))
    images = as_images(before.shape)
    return (
        before.dtype == "float32" and images is not None and images == as_images(after.shape) and images[2:] == (1, 1)
    )


def is_flat(operation: Operation, values: Mapping[str, Value]) -> bool:
    """Elementwise operations that map zero to zero, on operands of one shape and single numbers, so that they
    may run over whole buffers, borders included."""
    if not isinstance(operation, Elementwise | Chain):
        return False
    result = values[operation.output]
    if as_images(result.shape) is None or result.dtype != "float32":
        return False
    names = [entry for entry in operation.inputs if isinstance(entry, str)]
    if any(values[name] != Value(name, result.shape) for name in names):
        return False
    return all(isinstance(entry, str) or entry.size == 1 for entry in operation.inputs) and keeps_zero(operation)


def keeps_zero(operation: Elementwise | Chain) -> bool:
    """Whether the result of zeros is zero."""
    zeros = [np.zeros((), np.float32) for _ in reads(operation)]
    (result,) = compute(operation, zeros, [Value(operation.output, ())])
    return bool(np.all(result == 0))


@dataclass
class _Class:
    """What the members of one class need: positions a row, rows an image, border rows and columns."""

    pitch: int = 0
    rows: int = 0
    height: int = 0  # rows without a border
    edge: Reach = field(default_factory=Reach)

    def grow(self, shape: Shape, edge: Reach, phases: tuple[int, int] = (1, 1)) -> None:
        rows, columns = -(-shape[2] // phases[0]), -(-shape[3] // phases[1])
        self.pitch = max(self.pitch, columns + max(edge.left, edge.right))
        self.rows = max(self.rows, rows + max(edge.top, edge.bottom))
        self.height = max(self.height, rows)

    def widen(self, threads: int) -> None:
        """Let the lower half of an image begin on a cache line, where a longer pitch makes next to no more vectors:
        two threads that share an image then write to no line together. Without borders a value may lie in bands, of
        whole vectors each."""
        bands = 2 if threads > 1 and self.edge == Reach() else 1
        least = bands * up(self.height * self.pitch // bands, LINE)
        for pitch in range(self.pitch, self.pitch + LINE):
            whole = self.height % 2 == 0 and self.height // 2 * pitch % LINE == 0
            if whole and up(self.height * pitch, LINE) <= _WIDER * least:
                self.pitch = pitch
                break

    def reaches(self, edge: Reach) -> None:
        old = self.edge
        self.edge = Reach(
            max(old.top, edge.top),
            max(old.left, edge.left),
            max(old.bottom, edge.bottom),
            max(old.right, edge.right),
        )


class _Classes:
    """Union-find over value names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        self._parent.setdefault(name, name)
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def join(self, names: Iterable[str | None]) -> None:
        roots = [self.find(name) for name in names if name is not None]
        for other in roots[1:]:
            self._parent[self.find(other)] = self.find(roots[0])


def assign_layouts(program: Program, target: Target, tuning: Tuning, threads: int) -> dict[str, Planes | None]:
    """The layout of every value."""
    sliding = _sliding(program, tuning)
    shapes = {name: as_images(value.shape) for name, value in program.values.items()}
    classes, lanes = _Classes(), {}
    for op in sliding:
        for name in touched(op):
            lanes[name] = lanes_for(shapes[name][0], target.width)  # type: ignore[index]
            classes.find(name)
        classes.join(_linked(op, lanes))
    needs: dict[str, _Class] = {name: _Class() for name in lanes if classes.find(name) == name}
    for name in lanes:
        needs[classes.find(name)].grow(shapes[name], Reach())  # type: ignore[arg-type]
    for op in sliding:
        if isinstance(op, Convolution | Pool):
            _require(op, shapes, lanes, classes, needs)  # type: ignore[arg-type]
    for name, need in needs.items():
        if lanes[name] == shapes[name][0] == 1:  # type: ignore[index]
            need.widen(threads)
    layouts: dict[str, Planes | None] = dict.fromkeys(program.values)
    for name in lanes:
        if program.values[name].dtype == "float32":
            layouts[name] = _planes(shapes[name], lanes[name], needs[classes.find(name)], target)  # type: ignore[arg-type]
    return in_bands(program, layouts, tuning, threads)


def _sliding(program: Program, tuning: Tuning) -> list[Operation]:
    """The operations that run on planes: those that slide, and those between them that follow."""
    sliding = [op for op in program.operations if slides(op, program, tuning)]
    waiting = [op for op in program.operations if follows(op, program)]
    there = {name for op in sliding for name in touched(op)}
    while joined := [op for op in waiting if not there.isdisjoint(touched(op))]:
        sliding += joined
        there |= {name for op in joined for name in touched(op)}
        waiting = [op for op in waiting if op not in joined]
    return sliding


def touched(operation: Operation) -> list[str]:
    """The values that a sliding operation reads or writes."""
    if isinstance(operation, Elementwise | Chain | Rearrange):
        return [n for n in operation.inputs if isinstance(n, str)] + [operation.output]
    names = [operation.input, operation.output]  # type: ignore[union-attr]
    residual = operation.epilogue.residual if isinstance(operation, Convolution | Linear) else None
    return names + ([residual] if residual else [])


def _linked(operation: Operation, lanes: Mapping[str, int]) -> list[str]:
    """The values whose layouts must agree because of `operation`."""
    names = touched(operation)
    if isinstance(operation, Elementwise | Chain | Rearrange):
        return names
    if isinstance(operation, Reduce):
        return []
    if isinstance(operation, Convolution | Pool):
        alike = lanes[operation.output] == 1 and is_direct(operation, 1) and not has_few_taps(operation)
        return names if alike else names[1:]
    return names[1:]


def _require(
    op: Convolution | Pool,
    shapes: Mapping[str, tuple[int, int, int, int]],
    lanes: Mapping[str, int],
    classes: _Classes,
    needs: dict[str, _Class],
) -> None:
    """What `op` asks of the geometry of its input (or of the class of its output, through a split view)."""
    input, output = shapes[op.input], shapes[op.output]
    direct = is_direct(op, lanes[op.output])
    split = lanes[op.output] == 1 and not direct
    by_rows = lanes[op.output] == 1 and has_few_taps(op)
    edge = Reach() if by_rows else reach(op, input, output, split)
    owner = needs[classes.find(op.input if direct else op.output)]
    if direct:
        owner.grow(input, edge)
        owner.reaches(edge)
    elif split:
        owner.grow(input, edge, op.stride)


def _planes(shape: tuple[int, int, int, int], lanes: int, need: _Class, target: Target) -> Planes | None:
    n, c, h, w = shape
    edge, pitch = need.edge, need.pitch
    lead, tail = edge.top * pitch + edge.left, edge.bottom * pitch + edge.right
    if lanes == 1:
        lead, tail = up(lead, LINE), tail + 2 * target.width
    if n == h == w == 1:
        return None  # one number a channel: C order already
    return Planes(n, c, h, w, lanes, pitch, need.rows * pitch, lead, tail)
