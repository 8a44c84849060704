"""Which values of one image lie on fewer pages: without room between channels, and in bands of rows. layout.py says
how, ARCHITECTURE.md why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sparsify.engine.layout import LINE, Planes, up
from sparsify.engine.program import Convolution, Operation, Program, reads, writes
from sparsify.engine.sliding import has_few_taps, is_direct, is_pointwise
from sparsify.engine.tiles import shares_positions
from sparsify.engine.tuning import Tuning

_FEW_ROWS = 7  # in a band, at least
_PAGE, _FEWER = 4096, 0.8  # bytes; times the pages, for which bands are worth it


def in_bands(
    program: Program, layouts: Mapping[str, Planes | None], tuning: Tuning, threads: int
) -> dict[str, Planes | None]:
    """The layouts, close together and in bands where operations go from row to row or from vector to vector of
    positions, and those that read a value look at one position of it at a time. A residual lies as what is written over
    it."""
    found, pairs = dict(layouts), []
    for op in program.operations:
        for name in set(writes(op)).difference(program.outputs):
            planes = layouts[name]
            if planes is not None and planes.lanes == planes.images == 1 and _writes_bands(op, tuning):
                found[name] = _cut(planes, threads, tuning, has_few_taps(op))
    for op in program.operations:
        residual = op.epilogue.residual if isinstance(op, Convolution) else None
        if residual is not None:
            pairs.append((residual, writes(op)[0]))
        if not _reads_bands(op, tuning):
            found.update((name, layouts[name]) for name in reads(op) if name != residual)
    while apart := [pair for pair in pairs if len({_room(found[name]) for name in pair}) > 1]:
        found.update((name, layouts[name]) for pair in apart for name in pair)
    return found


def _room(planes: Planes | None) -> tuple[int, int] | None:
    """What must be equal of a residual and what is written over it."""
    return None if planes is None else (planes.channel, planes.band_rows)


def _cut(planes: Planes, threads: int, tuning: Tuning, by_rows: bool) -> Planes:
    """Planes in as few bands, some for each thread, as let a core find the pages on which the channels lie. Vectors go
    on from band to band, unless they are written row by row."""
    chosen = replace(planes, plane=planes.height * planes.pitch, lead=0, tail=0)
    if not shares_positions(planes.height * planes.pitch // LINE, threads):
        return chosen
    for share in range(1, planes.height // _FEW_ROWS // threads + 1):
        if _pages(chosen) <= tuning.pages:
            break
        rows = -(-planes.height // (threads * share))
        rows = rows if by_rows or rows * planes.pitch % LINE == 0 else up(rows, LINE)
        bands = replace(chosen, plane=rows * planes.pitch, band_height=rows)
        if rows < planes.height and _pages(bands) <= _FEWER * _pages(chosen):
            chosen = bands
    return chosen


def _pages(planes: Planes) -> float:
    """On how many pages a position of all channels lies."""
    return planes.channels * min(1.0, 4 * planes.channel / _PAGE)


def _writes_bands(op: Operation, tuning: Tuning) -> bool:
    """Whether the kernels that `op` is for go from vector to vector, or from row to row."""
    if has_few_taps(op):
        return True
    return isinstance(op, Convolution) and op.groups == 1 and op.nonzeros < tuning.dense_above * op.weight.size


def _reads_bands(op: Operation, tuning: Tuning) -> bool:
    """Whether kernels for `op` read a copy, or go from vector to vector and read no position but those that they
    write."""
    if not isinstance(op, Convolution) or has_few_taps(op) or not _writes_bands(op, tuning):
        return False
    return not is_direct(op, 1) or is_pointwise(op)
