"""What a pass sees and does: who writes and reads each value, and a list of replacements."""

from __future__ import annotations

from dataclasses import replace

from sparsify.engine.program import Operation, Program, Value, reads, renamed, writes

MOST_BYTES = 1 << 24  # of new weights in a round, about


class Rewrite:
    """One round of one pass over a program.

    A pass looks at `program`, then says `put` and `forward`. An operation is changed at most once a round; a
    match that meets a changed one waits for the next round, which comes as long as anything changes.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operations = program.operations
        self.writer = {name: i for i, op in enumerate(self.operations) for name in writes(op)}
        self.readers: dict[str, list[int]] = {}
        for i, op in enumerate(self.operations):
            for name in reads(op):
                self.readers.setdefault(name, []).append(i)
        self._new: dict[int, tuple[Operation, ...]] = {}
        self._busy: set[int] = set()
        self._names: dict[str, str] = {}
        self._values: dict[str, Value] = {}
        self._bytes = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value."""
        return self.program.values[name].shape

    def maker(self, name: str, kind: type | tuple[type, ...] = object) -> int | None:
        """Number of the operation of that kind that writes a value; None where there is none."""
        i = self.writer.get(name)
        return i if i is not None and isinstance(self.operations[i], kind) else None

    def is_private(self, name: str) -> bool:
        """Whether just one operation reads a value, once, and it is no output."""
        return len(self.readers.get(name, ())) == 1 and name not in self.program.outputs

    def sole_reader(self, i: int) -> int | None:
        """Number of the operation that alone reads what operation i alone writes; None where others do."""
        names = writes(self.operations[i])
        return self.readers[names[0]][0] if len(names) == 1 and self.is_private(names[0]) else None

    def is_free(self, *numbers: int) -> bool:
        """Whether none of these operations was changed in this round."""
        return self._busy.isdisjoint(numbers)

    @property
    def is_full(self) -> bool:
        """Whether new weights should wait for the next round, before which the old ones are let go."""
        return self._bytes > MOST_BYTES

    def put(self, i: int, operation: Operation, *gone: int) -> None:
        """Replace operation i, and drop others that the new one stands for."""
        self.put_all(i, (operation,), gone)

    def put_all(
        self,
        i: int,
        operations: tuple[Operation, ...],
        gone: tuple[int, ...] = (),
        values: tuple[Value, ...] = (),
    ) -> None:
        """Replace operation i by several, drop others; `values` describe the new names that they write."""
        self._busy |= {i, *gone}
        old = {id(getattr(self.operations[k], "weight", None)) for k in (i, *gone)}
        weights = [weight for op in operations if (weight := getattr(op, "weight", None)) is not None]
        self._bytes += sum(weight.nbytes for weight in weights if id(weight) not in old)
        self._new |= dict.fromkeys(gone, ())
        self._new[i] = operations
        self._values |= {value.name: value for value in values}

    def forward(self, i: int, name: str) -> bool:
        """Drop operation i; whoever read its result reads `name` instead. False where that cannot be."""
        (output,) = writes(self.operations[i])
        if output in self.program.outputs or name in self._names:
            return False
        self._busy |= {i, *self.readers.get(output, ())}
        self._new[i] = ()
        self._names[output] = name
        return True

    def drop(self, i: int) -> None:
        """Drop operation i, whose results nobody reads."""
        self._busy.add(i)
        self._new[i] = ()

    @property
    def has_changes(self) -> bool:
        """Whether this round did anything."""
        return bool(self._new)

    def result(self) -> Program:
        """The program with the round's changes, without names that nobody mentions any more."""
        chosen = (op for i, old in enumerate(self.operations) for op in self._new.get(i, (old,)))
        operations = tuple(renamed(op, self._names) if self._names else op for op in chosen)
        used = {name for op in operations for name in (*reads(op), *writes(op))}
        used |= {value.name for value in self.program.inputs}
        values = {**self.program.values, **self._values}
        return replace(
            self.program,
            operations=operations,
            values={name: value for name, value in values.items() if name in used},
            constants={name: array for name, array in self.program.constants.items() if name in used},
        )
