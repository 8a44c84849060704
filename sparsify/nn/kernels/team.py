"""What each thread of a team does: take the next piece until none is left."""

from __future__ import annotations

from llvmlite import ir

from sparsify.engine.ir import I64, POINTER, STAGE_TYPE, Body, Module


def emit(module: Module) -> None:
    """void sparsify_share(task): the body of an OpenMP parallel region, run by all threads of a team at once.

    task: int64 [5] of pieces taken, pieces, function, buffers, constants.
    """
    body = Body(module, "sparsify_share", ir.FunctionType(ir.VoidType(), [POINTER]))
    b = body.builder
    (task,) = body.arguments
    count = body.load(task, 1, I64, align=8)
    function, buffers, constants = (body.load(task, i, POINTER, align=8) for i in (2, 3, 4))
    again, work, over = (b.append_basic_block(name) for name in ("again", "work", "over"))
    b.branch(again)
    b.position_at_end(again)
    piece = b.atomic_rmw("add", task, body.const(1), "monotonic")
    b.cbranch(b.icmp_signed("<", piece, count), work, over)
    b.position_at_end(work)
    body.call(function, STAGE_TYPE, [buffers, constants, piece])
    b.branch(again)
    b.position_at_end(over)
    body.done()
