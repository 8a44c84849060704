"""Softmax, layer normalisation and reductions along neighbours: a row of elements at a time, its sums in lanes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir

from sparsify.engine.folds import FOLDS, folding
from sparsify.engine.ir import F32, Body, Module
from sparsify.engine.program import LayerNorm, Operation, Reduce, Softmax
from sparsify.engine.stage import Context, Stage
from sparsify.engine.vector_math import constant, exact_exp, intrinsic

TILE = 8192  # elements, about
RATE = 1e9  # elements a second and thread


def propose(operation: Operation, context: Context) -> Stage | None:
    """Where the axes are the last ones, on values in C order."""
    if not isinstance(operation, Softmax | LayerNorm | Reduce):
        return None
    found = folding(operation, context.values)
    if found is None or found.inner != 1:
        return None
    together = max(1, TILE // max(1, found.axis))
    numbers = np.array([found.outer, found.axis, together], np.int64)
    size = found.outer * found.axis
    return Stage(
        kernel="along",
        function=f"sparsify_along_{found.name}",
        reads=(operation.input,),
        writes=(operation.output,),
        tiles=-(-found.outer // together) if size else 0,
        constants=(numbers, *found.constants),
        flops=float(size),
        seconds=size / RATE / context.threads,
        why=f"{found.outer} rows of {found.axis}",
    )


def emit(module: Module) -> None:
    """void sparsify_along_NAME(buffers, constants, tile): some rows."""
    functions: dict[str, Callable[..., None]] = {"softmax": _softmax, "layer_norm": _layer_norm}
    for name in (*functions, *FOLDS):
        body = Body(module, f"sparsify_along_{name}")
        b = body.builder
        buffers, constants, tile = body.arguments
        outer, axis, together = body.numbers(body.pointer(constants, 0), 3)
        source, target = (body.pointer(buffers, i) for i in (0, 1))
        first = b.mul(tile, together)
        last = body.smaller(b.add(first, together), outer)
        with body.loop(first, last) as row:
            here = body.at(source, b.mul(row.index, axis), F32)
            if name in functions:
                there = body.at(target, b.mul(row.index, axis), F32)
                functions[name](body, here, there, axis, constants)
            else:
                _reduce(body, name, here, body.at(target, row.index, F32), axis)
        body.done()


Map = Callable[[list[ir.Value]], ir.Value]


def _each(body: Body, count: ir.Value, sources: Sequence[ir.Value], target: ir.Value | None, function: Map,
          fold: tuple[str, float] | None = None) -> ir.Value:  # fmt: skip
    """function of each vector of the sources, stored where there is a target; folded to one number if asked."""
    b, width = body.builder, body.module.width
    name, start = fold or ("sum", 0.0)
    combine = FOLDS[name].combine
    whole = b.and_(count, body.const(-width))
    begin = constant(body.zeros(), start)
    with body.loop(0, whole, width, [begin]) as turn:
        vectors = [b.load(body.at(p, turn.index, F32), typ=body.module.vector, align=4) for p in sources]
        result = function(vectors)
        if target is not None:
            b.store(result, body.at(target, turn.index, F32), align=4)
        turn.following = [combine(body, turn.state[0], result)] if fold else turn.state
    mask = body.first_lanes(b.sub(count, whole))
    before = b.block
    with b.if_then(b.icmp_signed("<", whole, count)):
        result = function([body.masked_load(body.at(p, whole, F32), mask) for p in sources])
        if target is not None:
            body.masked_store(result, body.at(target, whole, F32), mask)
        ending = combine(body, turn.state[0], b.select(mask, result, begin))
        inside = b.block
    total = b.phi(body.module.vector)
    total.add_incoming(turn.state[0], before)
    total.add_incoming(ending, inside)
    return across(body, total, combine) if fold else total


def across(body: Body, vector: ir.Value, combine: Callable[..., ir.Value]) -> ir.Value:
    """All lanes folded into one number, spread over a vector again."""
    width = vector.type.count
    while width > 1:
        width //= 2
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.type.count),
                            [(i + width) % vector.type.count for i in range(vector.type.count)])  # fmt: skip
        vector = combine(body, vector, body.builder.shuffle_vector(vector, vector, lanes))
    return vector


def _reduce(body: Body, name: str, source: ir.Value, target: ir.Value, axis: ir.Value) -> None:
    b, fold = body.builder, FOLDS[name]
    total = _each(body, axis, [source], None, lambda x: x[0], (name, fold.start))
    number = b.extract_element(total, ir.Constant(ir.IntType(32), 0))
    body.store(fold.finish(body, number, axis), target, 0)


def _softmax(body: Body, source: ir.Value, target: ir.Value, axis: ir.Value, constants: ir.Value) -> None:
    b = body.builder
    highest = _each(body, axis, [source], None, lambda x: x[0], ("max", -np.inf))
    total = _each(body, axis, [source], target, lambda x: exact_exp(body, b.fsub(x[0], highest)), ("sum", 0.0))
    factor = b.fdiv(constant(total, 1.0), total)
    _each(body, axis, [target], target, lambda x: b.fmul(x[0], factor))


def _layer_norm(body: Body, source: ir.Value, target: ir.Value, axis: ir.Value, constants: ir.Value) -> None:
    b = body.builder
    scale, bias = (body.pointer(constants, i) for i in (1, 2))
    epsilon = body.splat(body.load(body.pointer(constants, 3), 0, F32))
    count = body.splat(b.sitofp(axis, F32))
    mean = b.fdiv(_each(body, axis, [source], None, lambda x: x[0], ("sum", 0.0)), count)

    def squared(x: list[ir.Value]) -> ir.Value:
        centred = b.fsub(x[0], mean)
        return b.fmul(centred, centred)

    variance = b.fdiv(_each(body, axis, [source], None, squared, ("sum", 0.0)), count)
    factor = b.fdiv(constant(mean, 1.0), intrinsic(body, "sqrt", b.fadd(variance, epsilon)))
    _each(body, axis, [source, scale, bias], target,
          lambda x: body.fma(b.fmul(b.fsub(x[0], mean), factor), x[1], x[2]))  # fmt: skip
