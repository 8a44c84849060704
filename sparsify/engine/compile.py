"""From a program to something that runs: choose kernels, put copies between layouts, lay out memory.

The result is a list of segments: runs of native stages, each one native call, and Python callables for
operations that no kernel knows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from sparsify.engine.batches import Batches, part_size, resized
from sparsify.engine.choose import choose
from sparsify.engine.executable import Executable
from sparsify.engine.groups import Step, kept
from sparsify.engine.kernels import tandem
from sparsify.engine.kernels.copy import copy_stage
from sparsify.engine.memory import Weights, give_back
from sparsify.engine.numpy_ops import compute
from sparsify.engine.plan import assign_layouts
from sparsify.engine.program import Operation, Program, Rearrange, reads, writes
from sparsify.engine.sliding import reads_around
from sparsify.engine.stage import Context, Layout, PythonStage, Stage
from sparsify.engine.target import Target, host
from sparsify.engine.tuning import Tuning


class _Lowering:
    """The list of steps as it grows."""

    def __init__(self, program: Program, context: Context) -> None:
        self.program, self.context = program, context
        self.steps: list[Step] = []
        self.weights = Weights()
        self._shapes = {name: value.shape for name, value in program.values.items()}
        self._there: dict[str, list[Layout]] = {
            name: [None] for name in (*program.constants, *(value.name for value in program.inputs))
        }
        self._same: dict[str, str] = {}  # values that are another one under a second name and shape

    def bring(self, value: str, layout: Layout) -> None:
        """Make sure that a value is there in a layout."""
        root = self._same.get(value, value)
        have = self._there[root]
        if layout in have:
            return
        if root != value and None not in have:
            self.bring(root, None)  # its planes are of another shape
            return self.bring(value, layout)
        origin = None if None in have else next(h for h in have if h is None or h.phases == (1, 1))
        stage = kept(copy_stage(root, self.program.values[value].shape, origin, layout), self.weights)
        self.steps.append(Step("copy", "", stage, ((root, origin),), ((root, layout),)))
        have.append(layout)

    def add(self, operation: Operation) -> None:
        """The steps of one operation; none for a reshape, but for one that writes an output."""
        if not self._is_name(operation):
            self._put(operation, choose(operation, self.context) or _python(operation, self.program))

    def add_pair(self, first: Operation, second: Operation) -> bool:
        """One step for two operations, where a kernel does both. `second` alone reads what `first` writes."""
        chosen = tandem.pair(first, second, self.context)
        if chosen is not None:
            self._put(first, chosen, " + ".join(getattr(op, "name", "") or writes(op)[0] for op in (first, second)))
        return chosen is not None

    def _put(self, operation: Operation, chosen: Stage | PythonStage, title: str | None = None) -> None:
        """A step, after the copies that it needs."""
        stage = kept(chosen, self.weights) if isinstance(chosen, Stage) else chosen
        layouts = stage.layouts if isinstance(stage, Stage) else {}
        inputs = tuple((self._same.get(name, name), layouts.get(name)) for name in stage.reads)
        outputs = tuple((name, layouts.get(name)) for name in stage.writes)
        for name in stage.reads:
            self.bring(name, layouts.get(name))
        read = zip(stage.reads, inputs, strict=True)
        around = tuple(
            place
            for name, place in read
            if place[1] is not None and reads_around(operation, name, place[1].lanes, self._shapes)
        )
        title = getattr(operation, "name", "") if title is None else title
        self.steps.append(Step(type(operation).__name__, title, stage, inputs, outputs, around))
        self._there.update((name, [layout]) for name, layout in outputs)

    def _is_name(self, operation: Operation) -> bool:
        """Whether an operation moves no element. Its result is then its operand under another name."""
        if not isinstance(operation, Rearrange) or operation.kind != "reshape":
            return False
        source, target = operation.inputs[0], operation.output
        sizes = (*self.program.values[source].shape, *self.program.values[target].shape)
        if target in self.program.outputs or -1 in sizes:
            return False
        self._same[target] = self._same.get(source, source)
        return True


def _python(operation: Operation, program: Program) -> PythonStage:
    results = [program.values[name] for name in writes(operation)]

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(compute(operation, arrays, results))

    return PythonStage(call, reads(operation), writes(operation))


def compile_program(
    program: Program,
    threads: int,
    target: Target | None = None,
    tuning: Tuning | None = None,
    prefer: str = "",
) -> Executable | Batches:
    """Compile `program` for `threads` threads of `target` (default: this CPU).

    What no kernel knows runs in numpy. `prefer` names a kernel that wins wherever it is possible. Raises
    EngineError where the target's instructions are not there.
    """
    target, tuning = target or host(), tuning or Tuning()
    size = part_size(program, target.width, tuning.batch_bytes)
    operations = list(program.operations)
    program = replace(program, operations=())  # where the caller keeps no name of it, weights go one by one
    if program.inputs and program.inputs[0].shape[:1] not in ((), (size,)):
        count = program.inputs[0].shape[0] // size
        part = _compile(resized(program, size), operations, threads, target, tuning, prefer)
        return Batches(program, part, count)
    return _compile(program, operations, threads, target, tuning, prefer)


def _compile(
    program: Program, operations: list[Operation], threads: int, target: Target, tuning: Tuning, prefer: str
) -> Executable:
    """`operations` are those of the program; the list is emptied."""
    context = Context(
        program.values,
        assign_layouts(replace(program, operations=tuple(operations)), target, tuning, threads),
        target,
        threads,
        tuning,
        sum(getattr(op, "nonzeros", 0) for op in operations),
        prefer,
    )
    lowering = _Lowering(program, context)
    operations.reverse()
    once = {name for name, count in Counter(name for op in operations for name in reads(op)).items() if count == 1}
    once -= set(program.outputs)
    while operations:
        operation = operations.pop()
        if operations and once.issuperset(writes(operation)) and lowering.add_pair(operation, operations[-1]):
            operations.pop()
        else:
            lowering.add(operation)
    for name in program.outputs:
        lowering.bring(name, None)
    give_back()
    executable = Executable(program, lowering.steps, lowering.weights, target, threads, tuning)
    del lowering
    give_back()
    return executable
