"""The one place where a kernel is chosen: every kernel proposes, the least predicted time wins."""

from __future__ import annotations

from sparsify.engine.library import kernel_files
from sparsify.engine.program import Operation
from sparsify.engine.stage import Context, Stage


def proposals(operation: Operation, context: Context) -> list[Stage]:
    """What every kernel that can do `operation` would do, fastest first."""
    found = [file.propose(operation, context) for file in kernel_files().values()]
    return sorted((stage for stage in found if stage is not None), key=lambda stage: stage.seconds)


def choose(operation: Operation, context: Context) -> Stage | None:
    """The stage for `operation`; None where no kernel knows it."""
    found = proposals(operation, context)
    return found[0] if found else None
