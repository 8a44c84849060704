"""Puts a program together, one operation at a time; what depends on constants alone is computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsify.engine.front.constants import Constants
from sparsify.engine.front.graph import Array, Node
from sparsify.engine.front.shapes import infer
from sparsify.engine.limits import Budget, check_shape
from sparsify.engine.nonzeros import Weight
from sparsify.engine.numpy_ops import compute
from sparsify.engine.program import (
    Elementwise,
    Operation,
    Program,
    Rearrange,
    Shape,
    Value,
    reads,
    renamed,
    writes,
)


class Unsupported(Exception):
    """An importer's word for a form of its operator that the program's grammar cannot say."""


class Builder:
    """The program so far. Importers read values by name and emit operations that write new ones."""

    def __init__(self, constants: Constants, inputs: Sequence[Value], budget: Budget) -> None:
        self.inputs = tuple(inputs)
        self.budget = budget
        self.constants = constants.chosen({name: name for name in constants})
        self.values: dict[str, Value] = {value.name: value for value in inputs}
        self.aliases: dict[str, str] = {}
        self.operations: list[Operation] = []
        self._fresh = 0
        self.values |= {name: constants.value(name) for name in constants}

    def define(self, name: str, array: Array) -> str:
        """Make a constant known under a name, which is returned."""
        self.constants[name] = array
        self.values[name] = Value(name, array.shape, str(array.dtype))
        return name

    def constant(self, name: str) -> Array | None:
        """The constant of that name; None where the value is computed or left out ("")."""
        return self.constants.get(name)

    def need_constant(self, name: str) -> Array:
        """The constant of that name. Raises Unsupported where it is computed."""
        found = self.constants.get(name)
        if found is None:
            raise Unsupported(f"'{name}' is not constant")
        return found

    def weight(self, name: str) -> Weight | None:
        """The constant of that name as it is stored; None where the value is computed."""
        return self.constants.stored(name)

    def ints(self, node: Node, attribute: str, index: int) -> tuple[int, ...] | None:
        """Integers that are an attribute in old opsets and a constant input in new ones; None: left out."""
        if attribute in node.attributes:
            return tuple(node.attributes[attribute])
        if not node.input(index):
            return None
        return tuple(int(i) for i in self.need_constant(node.input(index)).reshape(-1))

    def operand(self, name: str) -> str | Array:
        """An operand of Elementwise or Gather: the array itself where it is constant."""
        return self.constants.get(name, name)

    def shape(self, name: str) -> Shape:
        """Shape of a value."""
        return self.values[name].shape

    def dtype(self, name: str) -> str:
        """Dtype of a value, as numpy's name."""
        return self.values[name].dtype

    def resolve(self, name: str) -> str:
        """The value that a name of the model stands for."""
        return self.aliases.get(name, name)

    def alias(self, name: str, target: str) -> None:
        """Make `name` another name of the value `target`."""
        self.aliases[name] = self.resolve(target)

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet."""
        while True:
            self._fresh += 1
            name = f"{hint}:{self._fresh}"
            if name not in self.values:
                return name

    def emit(self, operation: Operation, *declared: Value) -> str:
        """Append an operation, or compute it where all it reads is constant. Returns what it writes first.

        declared: the values that it writes, for operations that do not tell by themselves.
        Raises ValueError where operands do not fit, EngineError where the result is beyond the limits.
        """
        results = list(declared) or infer(operation, self.values)
        size = sum(check_shape(f"The value '{value.name}'", value.shape, value.dtype) for value in results)
        names = reads(operation)
        if all(name in self.constants for name in names):
            self.budget.spend(size)
            arrays = compute(operation, [self.constants[name] for name in names], results)
            for value, array in zip(results, arrays, strict=True):
                self.define(value.name, array)
        else:
            self.operations.append(operation)
            self.values |= {value.name: value for value in results}
        return writes(operation)[0]

    def elementwise(self, function: str, *operands: str | Array, output: str = "") -> str:
        """Emit an Elementwise operation; names of constants become the constants themselves."""
        inputs = tuple(self.operand(o) if isinstance(o, str) else o for o in operands)
        return self.emit(Elementwise(function, inputs, output or self.fresh(function)))

    def rearrange(self, kind: Any, source: str, shape: Shape | None = None, output: str = "", **given: Any) -> str:
        """Emit a Rearrange of one operand; "reshape" and "expand" take the shape."""
        output = output or self.fresh(kind)
        operation = Rearrange(kind, (source,), output, given)
        if shape is None:
            return self.emit(operation)
        before = self.shape(source)
        if kind == "reshape" and np.prod(before, dtype=object) != np.prod(shape, dtype=object):
            raise ValueError(f"{before} cannot be seen as {shape}")
        if kind == "expand" and np.broadcast_shapes(before, shape) != shape:
            raise ValueError(f"{before} cannot be expanded to {shape}")
        return self.emit(operation, Value(output, shape, self.dtype(source)))

    def reshape(self, source: str, shape: Shape, output: str = "") -> str:
        """The same elements in another shape."""
        return self.rearrange("reshape", source, tuple(shape), output)

    def transpose(self, source: str, perm: Sequence[int], output: str = "") -> str:
        """The same elements with axes in another order."""
        return self.rearrange("transpose", source, output=output, perm=tuple(perm))

    def finish(self, outputs: Sequence[str]) -> Program:
        """The program whose outputs, in this order, are these names of the model.

        An output keeps its name, unless an input or constant has it.
        """
        names: dict[str, str] = {}
        written = {name for operation in self.operations for name in writes(operation)}
        final = []
        for output in outputs:
            source = self.resolve(output)
            if source in written and source not in names and (source == output or source not in outputs):
                names[source] = output
                final.append(output)
            else:
                final.append(self._copy(source, output))
        operations = tuple(renamed(operation, names) for operation in self.operations)
        used = {value.name for value in self.inputs}
        used |= {name for operation in operations for name in (*reads(operation), *writes(operation))}
        values = {names.get(v.name, v.name): v for v in self.values.values()}
        return Program(
            inputs=self.inputs,
            outputs=tuple(final),
            operations=operations,
            values={name: replace(value, name=name) for name, value in values.items() if name in used},
            constants={name: self.constants[name] for name in self.constants if name in used},
        )

    def _copy(self, source: str, output: str) -> str:
        """An operation that writes an input, a constant or a second name of a value; returns its output."""
        if output in self.values:
            output = self.fresh(output)
        self.operations.append(Rearrange("reshape", (source,), output))
        self.values[output] = replace(self.values[source], name=output)
        return output
