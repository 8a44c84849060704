"""A compiled program: its stages in memory, ready to run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsify.engine.bands import Visit, visits
from sparsify.engine.groups import Group, Step, moving, settled
from sparsify.engine.library import kernel_files, library
from sparsify.engine.memory import Weights, aligned
from sparsify.engine.memory_plan import MemoryPlan, Place
from sparsify.engine.program import Program, Value
from sparsify.engine.runtime import Job, Record, pool, release_with
from sparsify.engine.stage import PythonStage, Stage
from sparsify.engine.target import Target
from sparsify.engine.tuning import Tuning
from sparsify.errors import EngineError


@dataclass(frozen=True)
class Row:
    """One line of `Executable.report()`."""

    operation: str  # the grammar's name, or "copy"
    name: str  # of the layer, as the model file calls it, or of the value written
    kernel: str
    why: str
    density: float
    gflop: float  # useful floating-point operations of one run, in 1e9
    predicted: float  # seconds
    measured: float  # seconds of the last run, 0 before the first


class Executable:
    """Runs a program on arrays of the shapes that it was compiled for. May be shared by threads."""

    def __init__(
        self, program: Program, steps: Sequence[Step], weights: Weights, target: Target, threads: int, tuning: Tuning
    ) -> None:
        """`weights` holds what the steps' stages keep."""
        self.program = replace(program, operations=())  # the dense weights may go
        self.target = target
        self._pool = pool(target, threads)
        outputs = [program.values[name] for name in program.outputs]
        self._inputs = [(value.name, np.dtype(value.dtype)) for value in program.inputs]
        self._outputs = [(v.name, v.shape, np.dtype(v.dtype)) for v in outputs if -1 not in v.shape]
        outside = {value.name for value in program.inputs} | set(program.outputs)
        self._plan = MemoryPlan(
            dict(program.values), [(s.reads, s.writes, s.replaced) for s in steps], outside | set(program.constants),
            {place for step in steps for place in step.around},
            {place for step in steps if step.fills for place in step.writes}, tuning,
        )  # fmt: skip
        self._constants = {name: np.asarray(array, order="C") for name, array in program.constants.items()}
        self._scratch = sum(step.stage.scratch for step in steps if isinstance(step.stage, Stage))
        groups = settled(steps, self._plan, weights, tuning.band_bytes)
        weights.seal()
        self._weights = weights
        self._segments = [_Segment(self, group, threads, tuning.band_bytes) for group in groups]

    def run(self, inputs: Sequence[np.ndarray], into: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """The program's outputs for `inputs`: C-ordered arrays of the program's shapes and types.

        `into`: arrays to write the outputs to, C-ordered; new ones by default.
        """
        arrays: dict[str, np.ndarray] = dict(self._constants)
        for (name, dtype), array in zip(self._inputs, inputs, strict=True):
            arrays[name] = np.asarray(array, dtype, order="C")
        if into is not None:
            arrays |= dict(zip(self.program.outputs, into, strict=True))
        for name, shape, dtype in self._outputs:
            if name not in arrays:
                arrays[name] = np.empty(shape, dtype)
        with self._pool.lock:
            for segment in self._segments:
                segment.run(arrays)
        return [arrays[name] for name in self.program.outputs]

    def place(self, stage: Stage) -> np.ndarray:
        """Addresses of a stage's constants, its code's last: int64 [n + 1]."""
        table = aligned(len(stage.constants) + 1, np.int64)
        for index, array in enumerate(stage.constants):
            assert isinstance(array, np.ndarray)
            table[index] = array.ctypes.data
        table[-1] = stage.address
        return table

    def report(self) -> list[Row]:
        """What runs, stage by stage, and what the last run took."""
        return [row for segment in self._segments for row in segment.report()]

    @property
    def bytes(self) -> int:
        """Memory of buffers, weights and code."""
        return self._plan.bytes + self._scratch + self._weights.size


class _Segment:
    """Native stages that run in one call, or one Python stage."""

    def __init__(self, owner: Executable, group: Group, threads: int, band: int) -> None:
        steps = group.all
        self._plan, self._pool = owner._plan, owner._pool
        self._values = owner.program.values
        self._seconds = 0.0
        self._keep: list[Any] = []
        self._patches: list[tuple[np.ndarray, str]] = []
        self._failures: list[tuple[np.ndarray, str]] = []
        self._job: Job | None = None
        if isinstance(steps[0].stage, Stage):
            records, self._owners = self._visits(group, owner, band)
            self._job = Job(records, threads)
            release_with(self, self._pool, self._job)
        self._steps = [_light(step) for step in steps]

    def _visits(self, group: Group, owner: Executable, band: int) -> tuple[list[Record], list[int]]:
        """What the runtime reads, and which step each record belongs to."""
        tables = [self._records(step, owner) for step in group.all]
        order = visits([moving(step, self._plan) for step in group.steps], band)
        for number, (start, step) in enumerate(group.borders, len(group.steps)):
            assert isinstance(step.stage, Stage)
            at = next(i for i, visit in enumerate(order) if start <= visit.step < len(group.steps))
            order.insert(at, Visit(number, 0, step.stage.tiles))
        records = [(*row, visit.tiles, visit.first) for visit in order for row in tables[visit.step]]
        return records, [visit.step for visit in order for _ in tables[visit.step]]

    def _records(self, step: Step, owner: Executable) -> list[tuple[int, int, int]]:
        """Function and tables, once for each of the stage's steps, which differ in their number."""
        stage = step.stage
        assert isinstance(stage, Stage)
        columns = len(step.reads) + len(step.writes) + 2
        buffers = aligned(stage.steps * columns, np.int64).reshape(stage.steps, columns)
        buffers[:, -1] = np.arange(stage.steps)
        for index, place in enumerate((*step.reads, *step.writes)):
            if place[1] is None and (place[0] in owner._constants):
                buffers[:, index] = owner._constants[place[0]].ctypes.data
                continue
            try:
                buffers[:, index] = self._plan.buffer(place).ctypes.data
            except KeyError:  # the caller's own array
                self._patches.append((buffers[:, index], place[0]))
        if stage.scratch:
            scratch = aligned(stage.scratch, np.uint8)
            buffers[:, -2] = scratch.ctypes.data
            self._keep.append(scratch)
            if stage.failure:
                self._failures.append((scratch[:8].view(np.int64), stage.failure))
        constants = owner.place(stage)
        self._keep += [buffers, constants, owner._weights]
        function = library(owner.target, kernel_files()[stage.kernel]).address(stage.function)
        assert function, f"{stage.kernel} has no function {stage.function}"
        return [(function, row.ctypes.data, constants.ctypes.data) for row in buffers]

    def run(self, arrays: dict[str, np.ndarray]) -> None:
        start = time.perf_counter()
        if self._job is not None:
            for addresses, name in self._patches:
                addresses[:] = arrays[name].ctypes.data
            self._pool.run(self._job)
            self._raise_failures()
        else:
            self._run_python(arrays)
        self._seconds = time.perf_counter() - start

    def _raise_failures(self) -> None:
        for flag, message in self._failures:
            if flag[0]:
                flag[0] = 0
                raise EngineError(message)

    def _run_python(self, arrays: dict[str, np.ndarray]) -> None:
        step = self._steps[0]
        assert isinstance(step.stage, PythonStage)
        shapes = [self._values[name].shape for name in step.stage.reads]  # a place may go by several names
        operands = [self._array(place, arrays) for place in step.reads]
        results = step.stage.call(
            [a if -1 in shape else a.reshape(shape) for a, shape in zip(operands, shapes, strict=True)]
        )
        for place, result in zip(step.writes, results, strict=True):
            if place[0] in arrays:
                arrays[place[0]][...] = result
            elif -1 in self._values[place[0]].shape:
                arrays[place[0]] = result
            else:
                self._array(place, arrays)[...] = result

    def _array(self, place: Place, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """A C-ordered value as an array."""
        if place[0] in arrays:
            return arrays[place[0]]
        value: Value = self._values[place[0]]
        count = int(np.prod(value.shape)) * np.dtype(value.dtype).itemsize
        return self._plan.buffer(place)[:count].view(value.dtype).reshape(value.shape)

    def report(self) -> list[Row]:
        shares: np.ndarray = np.ones(1)
        if self._job is not None:
            shares = np.bincount(self._owners, self._job.shares(), len(self._steps))
        return [_row(step, self._seconds * share) for step, share in zip(self._steps, shares, strict=True)]


def _light(step: Step) -> Step:
    """A step for the report: without its weights."""
    if isinstance(step.stage, PythonStage):
        return step
    return replace(step, stage=replace(step.stage, constants=()))


def _row(step: Step, seconds: float) -> Row:
    stage = step.stage
    name, kind = step.name or step.writes[0][0], step.operation
    if isinstance(stage, PythonStage):
        return Row(kind, name, stage.kernel, stage.why, 1.0, 0.0, 0.0, seconds)
    return Row(kind, name, stage.kernel, stage.why, stage.density, stage.flops / 1e9, stage.seconds, seconds)
