"""Elementwise functions in any number, one after the other, over pieces that stay in the first-level cache.

A chain becomes a tape: for each link which loop to run, on which pieces. So nothing is compiled for a model,
and what lies between two links never goes out to memory. Operands are read in place, by strides that are 0
where they are broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsify.engine import tape
from sparsify.engine.ir import Module
from sparsify.engine.layout import Planes
from sparsify.engine.plan import keeps_zero
from sparsify.engine.program import Chain, Elementwise, Link, Operation, Shape, reads
from sparsify.engine.stage import Context, Stage
from sparsify.engine.tape import AXES, BYTES, NUMBER, OPERANDS, PIECE, SLOTS, Operand, parameters
from sparsify.engine.vector_functions import VECTOR
from sparsify.engine.views import contiguous, merged

TILE = 16384  # elements, about
RATE = 1.5e9  # elements a second, link and thread


def propose(operation: Operation, context: Context) -> Stage | None:
    """An Elementwise or Chain of float32 and truth values; whole numbers only as operands of a cast."""
    chain = _chain(operation, context)
    if chain is None or len(chain.inputs) >= OPERANDS:
        return None
    layout = _layout(chain, context)
    shape = (layout.size,) if layout is not None else context.values[chain.output].shape
    operands = _operands(chain, context, shape, layout is not None)
    axes = merged(shape, *(operand.strides for operand in operands)) or [(1, *[1] * len(operands))]
    inner = axes[-1][1:]
    if len(axes) - 1 > AXES or not set(inner) <= {0, 1}:
        return None
    moves = [_move(operand, step) for operand, step in zip(operands[:-1], inner[:-1], strict=True)]
    steps = _steps(chain, moves) if None not in moves else None
    if steps is None:
        return None
    pieces = -(-axes[-1][0] // PIECE)
    total = int(np.prod([axis[0] for axis in axes[:-1]], dtype=np.int64)) * pieces
    together = max(1, TILE // min(PIECE, axes[-1][0] or 1))
    names = reads(chain)
    size = int(np.prod(shape))
    return Stage(
        kernel="elementwise",
        function=tape.FUNCTION,
        reads=names,
        writes=(chain.output,),
        tiles=-(-total // together) if size else 0,
        constants=(
            np.array(parameters(axes, operands, steps, (total, together, pieces)), np.int64),
            *(operand.array for operand in operands if operand.array is not None),
        ),
        layouts={} if layout is None else dict.fromkeys((*names, chain.output), layout),
        flops=float(size * len(chain.links)),
        seconds=size * len(chain.links) / RATE / context.threads,
        why=" ".join(link.function for link in chain.links),
    )


def emit(module: Module) -> None:
    """The loop over pieces and the loops of all functions."""
    tape.emit(module)


def _chain(operation: Operation, context: Context) -> Chain | None:
    """The operation as a chain that a tape can express."""
    if isinstance(operation, Elementwise):
        link = Link(operation.function, tuple(range(len(operation.inputs))), context.values[operation.output].dtype)
        operation = Chain((link,), operation.inputs, operation.output)
    if not isinstance(operation, Chain):
        return None
    dtypes = [context.values[i].dtype if isinstance(i, str) else str(i.dtype) for i in operation.inputs]
    if not set(dtypes) <= BYTES.keys():
        return None
    for link in operation.links:
        given = {dtypes[i] if i >= 0 else operation.links[-1 - i].dtype for i in link.operands}
        if link.dtype not in ("float32", "bool") or (link.function not in VECTOR and link.function != "cast"):
            return None
        if link.function != "cast" and not given <= {"float32", "bool"}:
            return None
    return operation


def _layout(chain: Chain, context: Context) -> Planes | None:
    """The layout that the chain may run over as one flat buffer, where borders of zeros stay zero; None: C order."""
    layout, names = context.layouts[chain.output], reads(chain)
    if layout is None or not names or any(context.layouts[name] != layout for name in names):
        return None
    single = all(isinstance(entry, str) or entry.size == 1 for entry in chain.inputs)
    return layout if single and keeps_zero(chain) else None


def _operands(chain: Chain, context: Context, shape: Shape, flat: bool) -> list[Operand]:
    """What the chain reads, in the order of its inputs, then what it writes. Strides are along `shape`."""
    found, names, arrays = [], 0, 0
    for entry in chain.inputs:
        if isinstance(entry, str):
            value = context.values[entry]
            found.append(Operand(value.dtype, _strides(shape if flat else value.shape, shape), names))
            names += 1
            continue
        arrays += 1
        array = np.asarray(entry, np.float32)
        if array.size == 1:  # a piece of equal numbers, read again and again
            strides, array = (0,) * len(shape), np.full(PIECE, array.reshape(-1)[0], np.float32)
        else:
            strides = _strides(array.shape, shape)
        found.append(Operand("float32", strides, arrays, array))
    output = context.values[chain.output]
    return [*found, Operand(output.dtype, contiguous(shape).strides, names)]


def _strides(own: Shape, shape: Shape) -> tuple[int, ...]:
    """Strides of an array of the shape `own` along the axes of `shape`, to which it is broadcast."""
    padded = (0,) * (len(shape) - len(own)) + contiguous(own).strides
    sizes = (1,) * (len(shape) - len(own)) + own
    return tuple(0 if size == 1 else stride for size, stride in zip(sizes, padded, strict=True))


def _move(operand: Operand, step: int) -> str | None:
    """What must be done to an operand before a link can read it, "" for nothing; None: it cannot be done."""
    if operand.dtype != "float32":
        return f"from_{operand.dtype}" if step else None
    is_piece = operand.array is not None and not any(operand.strides)
    return "" if step or is_piece else "spread"


def _steps(chain: Chain, moves: Sequence[str | None]) -> list[list[int]] | None:
    """The tape: code, target and operands of each step. None where it needs more slots than there are."""
    last = {i: number for number, link in enumerate(chain.links) for i in link.operands}
    free, places, steps = list(range(SLOTS)), dict[int, int](), list[list[int]]()
    for number, link in enumerate(chain.links):
        for i in dict.fromkeys(link.operands):
            if i >= 0 and i not in places:
                places[i] = SLOTS + i
                if moves[i]:
                    if not free:
                        return None
                    places[i] = free.pop()
                    steps.append([NUMBER[str(moves[i])], places[i], SLOTS + i, 0, 0])
        given = [places[i] for i in link.operands]
        free += {places[i] for i in link.operands if last[i] == number and places[i] < SLOTS}
        ends = number == len(chain.links) - 1
        if not free:
            return None
        output = SLOTS + len(chain.inputs)
        target = output if ends and link.dtype == "float32" else free.pop()
        function = (
            {"float32": "from_float32", "bool": "truth"}[link.dtype] if link.function == "cast" else link.function
        )
        steps.append([NUMBER[function], target, *given, *[0] * (3 - len(given))])
        places[-1 - number] = target
        if ends and target != output:
            steps.append([NUMBER["to_bool"], output, target, 0, 0])
    return steps
