"""The passes between import and kernels, in the order in which they run, again until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

from sparsify.engine.front.rewrite import Rewrite
from sparsify.engine.front.rewrites.affine import fold_scale_and_shift_after, fold_scale_and_shift_before
from sparsify.engine.front.rewrites.chains import fuse_elementwise, fuse_moves
from sparsify.engine.front.rewrites.cleanup import drop_unread, pool_everything_is_mean
from sparsify.engine.front.rewrites.depthwise import scale_as_depthwise
from sparsify.engine.front.rewrites.epilogue import fuse_clip, fuse_residual
from sparsify.engine.front.rewrites.layout import (
    drop_idle,
    linear_of_matrix,
    merge_reshapes,
    merge_transposes,
    reshape_after_elementwise,
    transpose_as_reshape,
)
from sparsify.engine.front.rewrites.padding import fold_padding, zero_around_maximum
from sparsify.engine.front.rewrites.patterns import find_gelu, find_layer_norm
from sparsify.engine.front.rewrites.recurrent import inputs_at_once
from sparsify.engine.program import Program

Pass = Callable[[Rewrite], None]

PASSES: tuple[Pass, ...] = (
    drop_unread,
    drop_idle,
    transpose_as_reshape,
    merge_reshapes,
    merge_transposes,
    reshape_after_elementwise,
    pool_everything_is_mean,
    find_gelu,
    find_layer_norm,
    fold_padding,
    fold_scale_and_shift_after,
    fold_scale_and_shift_before,
    fuse_residual,
    fuse_clip,
)
# Once nothing changes any more: forms that kernels expect, which would stand in the way of the passes above.
LAST: tuple[Pass, ...] = (
    scale_as_depthwise,
    fold_scale_and_shift_after,
    fuse_residual,
    fuse_clip,
    zero_around_maximum,
    inputs_at_once,
    linear_of_matrix,
    merge_reshapes,
    drop_idle,
    fuse_elementwise,
    fuse_moves,
    drop_unread,
)
ROUNDS = 1000  # a guard: each round removes an operation or moves a reshape towards the end


def run_passes(program: Program, passes: tuple[Pass, ...] = PASSES, last: tuple[Pass, ...] = LAST) -> Program:
    """The program after all passes. Every pass keeps what the program computes."""
    for group in (passes, last):
        for _ in range(ROUNDS):
            is_changed = False
            for apply in group:
                # No name holds the program of before: its weights may go where new ones took their place.
                program, is_new = run_pass(program, apply)
                is_changed |= is_new
            if not is_changed:
                break
    return program


def run_pass(program: Program, apply: Pass) -> tuple[Program, bool]:
    """The program after one round of a pass, and whether it changed."""
    rewrite = Rewrite(program)
    apply(rewrite)
    return (rewrite.result(), True) if rewrite.has_changes else (program, False)
