"""The one place where a kernel is chosen: every kernel proposes, the least predicted time wins."""

from __future__ import annotations

from sparsify.engine.library import kernel_files
from sparsify.engine.program import Operation
from sparsify.engine.stage import Context, Proposal, Stage


def choose(operation: Operation, context: Context) -> Stage | None:
    """The stage for `operation`; None where no kernel knows it."""
    proposals = {name: file.propose(operation, context) for name, file in kernel_files().items()}
    possible = {name: proposal for name, proposal in proposals.items() if proposal is not None}
    if not possible:
        return None
    best = possible.get(context.prefer) or min(possible.values(), key=lambda proposal: proposal.seconds)
    return best.build() if isinstance(best, Proposal) else best
