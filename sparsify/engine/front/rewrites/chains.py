"""What runs best in one go: elementwise operations in a row, and moves of elements that need one copy or none."""

from __future__ import annotations

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.program import Chain, Elementwise, Link, Rearrange
from sparsify.engine.views import contiguous, merged, moved

LONGEST = 16  # links, so that operands and results find room
DTYPES = ("float32", "bool")


def fuse_elementwise(rewrite: Rewrite) -> None:
    """g(f(x)) becomes one Chain where nobody else wants f(x) and both have one shape."""
    for j, second in enumerate(rewrite.operations):
        if not isinstance(second, Elementwise | Chain) or not rewrite.is_free(j):
            continue
        for name in second.inputs:
            i = rewrite.maker(name, (Elementwise, Chain)) if isinstance(name, str) else None
            first = rewrite.operations[i] if i is not None else None
            if i is None or not isinstance(first, Elementwise | Chain) or not rewrite.is_free(i, j):
                continue
            private = set(rewrite.readers[first.output]) == {j} and first.output not in rewrite.program.outputs
            same = rewrite.shape(first.output) == rewrite.shape(second.output)
            chain = _joined(rewrite, first, second) if private and same else None
            if chain is not None:
                rewrite.put(j, chain, i)
                break


def _as_chain(rewrite: Rewrite, op: Elementwise | Chain) -> Chain:
    if isinstance(op, Chain):
        return op
    dtype = rewrite.program.values[op.output].dtype
    return Chain((Link(op.function, tuple(range(len(op.inputs))), dtype),), op.inputs, op.output)


def _joined(rewrite: Rewrite, first: Elementwise | Chain, second: Elementwise | Chain) -> Chain | None:
    """One chain of two, the second of which reads the first; None where it grows too long or has other dtypes."""
    before, after = _as_chain(rewrite, first), _as_chain(rewrite, second)
    links = len(before.links)
    if links + len(after.links) > LONGEST:
        return None
    inputs = list(before.inputs)
    known = {entry: number for number, entry in enumerate(inputs) if isinstance(entry, str)}
    places: dict[int, int] = {}
    for number, entry in enumerate(after.inputs):
        if isinstance(entry, str) and entry == before.output:
            places[number] = -links
        elif isinstance(entry, str) and entry in known:
            places[number] = known[entry]
        else:
            places[number] = len(inputs)
            inputs.append(entry)
    moved_on = tuple(
        Link(link.function, tuple(places[i] if i >= 0 else i - links for i in link.operands), link.dtype)
        for link in after.links
    )
    chain = Chain((*before.links, *moved_on), tuple(inputs), after.output)
    return chain if all(link.dtype in DTYPES for link in chain.links) else None


def fuse_moves(rewrite: Rewrite) -> None:
    """A Rearrange of a Rearrange becomes one view where strides describe both together."""
    for j, second in enumerate(rewrite.operations):
        if not isinstance(second, Rearrange) or len(second.inputs) != 1 or not rewrite.is_free(j):
            continue
        i = rewrite.maker(second.inputs[0], Rearrange)
        first = rewrite.operations[i] if i is not None else None
        if i is None or not isinstance(first, Rearrange) or not rewrite.is_free(i):
            continue
        if len(first.inputs) != 1 or "pad" in (first.kind, second.kind):
            continue
        if first.kind == second.kind == "reshape":
            continue  # merged by another pass
        steps = (*_steps(rewrite, first), *_steps(rewrite, second))
        source = rewrite.shape(first.inputs[0])
        view = moved(contiguous(source), "view", {"steps": steps}, ())
        if 0 in source:
            continue
        if view is None:
            # What is reshaped at the end may be copied to a target that is seen in the shape before.
            if second.kind == "reshape" and rewrite.is_private(first.output) and first.kind != "expand":
                rewrite.put(j, Rearrange("view", first.inputs, second.output, {"steps": steps}), i)
            continue
        if view.offset == 0 and merged(view.shape, view.strides) == merged(source, contiguous(source).strides):
            rewrite.put(j, Rearrange("reshape", first.inputs, second.output))
        else:
            rewrite.put(j, Rearrange("view", first.inputs, second.output, {"steps": steps}))


def _steps(rewrite: Rewrite, op: Rearrange) -> tuple[tuple[str, object, tuple[int, ...]], ...]:
    if op.kind == "view":
        return tuple(op.arguments["steps"])
    return ((op.kind, op.arguments, rewrite.shape(op.output)),)
