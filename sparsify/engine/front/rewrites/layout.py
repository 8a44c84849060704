"""Fewer moves of elements: reshapes and transposes merged, dropped, or pushed out of the way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Elementwise, Linear, Rearrange, Shape, Value

Array = np.ndarray[Any, Any]


def _is_reshape(op: object) -> bool:
    return isinstance(op, Rearrange) and op.kind == "reshape"


def drop_idle(rewrite: Rewrite) -> None:
    """Rearrangements of one operand after which everything is where it was."""
    for i, op in enumerate(rewrite.operations):
        if not isinstance(op, Rearrange) or len(op.inputs) != 1 or op.kind == "view" or not rewrite.is_free(i):
            continue
        source, given = op.inputs[0], op.arguments
        same_shape = rewrite.shape(source) == rewrite.shape(op.output)
        moves = op.kind == "transpose" and given["perm"] != tuple(range(len(given["perm"])))
        turns = op.kind == "slice" and any(step < 0 for step in given["steps"])
        if same_shape and not moves and not turns:
            rewrite.forward(i, source)


def transpose_as_reshape(rewrite: Rewrite) -> None:
    """A transpose that only moves axes of size 1 moves no element."""
    for i, op in enumerate(rewrite.operations):
        if isinstance(op, Rearrange) and op.kind == "transpose":
            shape = rewrite.shape(op.inputs[0])
            long_axes = [axis for axis in op.arguments["perm"] if shape[axis] != 1]
            if long_axes == sorted(long_axes):
                rewrite.put(i, Rearrange("reshape", op.inputs, op.output))


def merge_reshapes(rewrite: Rewrite) -> None:
    """A reshape of a reshape reads the first one's operand."""
    for j, op in enumerate(rewrite.operations):
        if not isinstance(op, Rearrange) or op.kind != "reshape":
            continue
        i = rewrite.maker(op.inputs[0], Rearrange)
        before = rewrite.operations[i] if i is not None else None
        if i is not None and isinstance(before, Rearrange) and _is_reshape(before) and rewrite.is_free(i, j):
            rewrite.put(j, replace(op, inputs=before.inputs))


def merge_transposes(rewrite: Rewrite) -> None:
    """A transpose of a transpose reads the first one's operand."""
    for j, op in enumerate(rewrite.operations):
        if not isinstance(op, Rearrange) or op.kind != "transpose":
            continue
        i = rewrite.maker(op.inputs[0], Rearrange)
        before = rewrite.operations[i] if i is not None else None
        if i is None or not isinstance(before, Rearrange) or before.kind != "transpose":
            continue
        if rewrite.is_free(i, j):
            first, second = before.arguments["perm"], op.arguments["perm"]
            perm = tuple(first[axis] for axis in second)
            rewrite.put(j, replace(op, inputs=before.inputs, arguments={"perm": perm}))


def linear_of_matrix(rewrite: Rewrite) -> None:
    """A Linear over more than two leading axes, or none, becomes one over a matrix between reshapes."""
    for i, op in enumerate(rewrite.operations):
        shape = rewrite.shape(op.output) if isinstance(op, Linear) else ()
        if not isinstance(op, Linear) or len(shape) in (2, 3):
            continue
        rows, (outputs, columns) = math.prod(shape[:-1]), op.weight.shape
        source = Value(f"{op.output}:matrix", (rows, columns))
        residual = Value(f"{op.output}:residual", (rows, outputs))
        result = Value(f"{op.output}:product", (rows, outputs))
        epilogue, before = op.epilogue, [Rearrange("reshape", (op.input,), source.name)]
        if epilogue.residual is not None:
            before.append(Rearrange("reshape", (epilogue.residual,), residual.name))
            epilogue = replace(epilogue, residual=residual.name)
        linear = replace(op, input=source.name, output=result.name, epilogue=epilogue)
        after = Rearrange("reshape", (result.name,), op.output)
        rewrite.put_all(i, (*before, linear, after), values=(source, residual, result))


def reshape_after_elementwise(rewrite: Rewrite) -> None:
    """f(reshape(x)) becomes reshape(f(x)), so that what made x can take f into its store.

    Binary operations qualify where both operands are reshapes from one shape, or the other is a constant that
    can be written for the shape of x: a single number, or one that only gains an axis of size 1, as in
    one-dimensional convolutions, whose planes have height 1 here.
    """
    for j, op in enumerate(rewrite.operations):
        if not isinstance(op, Elementwise) or op.function == "where" or op.output in rewrite.program.outputs:
            continue
        numbers = [rewrite.maker(entry, Rearrange) for entry in op.inputs if isinstance(entry, str)]
        if None in numbers or not numbers or not rewrite.is_free(j, *(n for n in numbers if n is not None)):
            continue
        makers = [rewrite.operations[n] for n in numbers if n is not None]
        reshapes = [m for m in makers if isinstance(m, Rearrange) and m.kind == "reshape"]
        if len(reshapes) == len(makers):
            _swap(rewrite, j, op, reshapes)


def _swap(rewrite: Rewrite, j: int, op: Elementwise, reshapes: list[Rearrange]) -> None:
    """Let `op` read what the reshapes read; readers of its result get a reshape of the result instead."""
    inner, outer = rewrite.shape(reshapes[0].inputs[0]), rewrite.shape(op.output)
    if any(rewrite.shape(r.inputs[0]) != inner or rewrite.shape(r.output) != outer for r in reshapes):
        return
    if any(not rewrite.is_private(r.output) for r in reshapes) or reshapes[0].inputs[0] in rewrite.program.constants:
        return
    sources = iter(reshapes)
    inputs: list[str | Array] = []
    for entry in op.inputs:
        moved = next(sources).inputs[0] if isinstance(entry, str) else constant_for(entry, inner, outer)
        if moved is None:
            return
        inputs.append(moved)
    name = f"{op.output}:before"
    if name in rewrite.program.values:
        return
    gone = [rewrite.writer[r.output] for r in reshapes[1:]]
    first = rewrite.writer[reshapes[0].output]
    if first > j:
        return
    dtype = rewrite.program.values[op.output].dtype
    moved_op = Elementwise(op.function, tuple(inputs), name)
    after = Rearrange("reshape", (name,), op.output)
    rewrite.put_all(j, (moved_op, after), (first, *gone), (Value(name, inner, dtype),))


def constant_for(constant: Array, inner: Shape, outer: Shape) -> Array | None:
    """A constant broadcast to `outer`, written so that it is broadcast to `inner` alike; None: cannot."""
    if constant.size == 1:
        return constant.reshape(())
    for place in range(len(inner)):
        if inner[place] == 1 and inner[:place] + inner[place + 1 :] == outer:
            from_end = len(inner) - place - 1
            if constant.ndim > len(outer):
                return None
            return constant if constant.ndim <= from_end else np.expand_dims(constant, constant.ndim - from_end)
    return None
