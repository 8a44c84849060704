"""What changed between two reports of the same machine and the same models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.bench.results import Measures, Report, Row
from sparsify.bench.statistics import CONFIDENCE, NOISE, Interval, interval, sign
from sparsify.errors import BenchError

SAME = ("cpu", "cores", "isa")  # of the machine, without which times cannot be compared
EACH = (1 + CONFIDENCE) / 2  # confidence of either side's interval, so that both hold with CONFIDENCE


@dataclass(frozen=True)
class Change:
    """One model in one runtime, then and now."""

    source: str
    runtime: str
    sparsity: float
    batch: int
    threads: int
    dense: bool  # the dense twin
    old_ms: float
    new_ms: float
    ratio: Interval  # new time over old
    verdict: str
    versions: tuple[str, str]


@dataclass(frozen=True)
class Changes:
    """All that two reports have in common, and what only one of them has."""

    changes: list[Change]
    pace: float | None  # time of the reference loop, new over old; None where a report does not say
    only_old: list[str]
    only_new: list[str]


def compare_reports(old: Report, new: Report) -> Changes:
    """Set the times of two reports side by side.

    Times of two runs cannot be paired as rounds are, so the interval of a change reaches from the one's low by the
    other's high to the reverse, each 97.5 % sure: both hold with 95 %. A change that the reference loop has made as
    well is the machine's and counts as none. Raises BenchError where machine or models are not the same.
    """
    _require_same_machine(old.machine, new.machine)
    pairs = _pairs(old, new)
    if not pairs:
        raise BenchError(
            f"The reports have nothing in common: the old one has {_labels(old.rows)}, the new one "
            f"{_labels(new.rows)}. Time the same models, runtimes, batches and threads again."
        )
    pace = _pace(old, new)
    least = max(NOISE, abs(pace - 1) if pace else 0.0)
    changes = [_change(a, b, dense, old, new, least) for a, b in pairs for dense in (False, True)]
    seen_old, seen_new = {id(a) for a, _ in pairs}, {id(b) for _, b in pairs}
    only_old = [_label(row) for row in old.rows if id(row) not in seen_old]
    only_new = [_label(row) for row in new.rows if id(row) not in seen_new]
    return Changes(changes, pace, only_old, only_new)


def _require_same_machine(old: dict[str, Any], new: dict[str, Any]) -> None:
    other = [f"{key} {old.get(key)} then, {new.get(key)} now" for key in SAME if old.get(key) != new.get(key)]
    if other:
        raise BenchError(
            f"The reports are of two machines ({'; '.join(other)}), and times of two machines say nothing about a "
            f"change. Run both benchmarks on one."
        )


def _pairs(old: Report, new: Report) -> list[tuple[Row, Row]]:
    """Rows of the same model at the same place of the grid: by their masks where both say, else by their names."""
    by_digest = {(row.digest, *_place(row, old)): row for row in old.rows if row.digest}
    by_name = {(row.source, round(row.sparsity, 6), *_place(row, old)): row for row in old.rows}
    pairs = []
    for row in new.rows:
        found = by_digest.get((row.digest, *_place(row, new)))
        if found is None:
            found = by_name.get((row.source, round(row.sparsity, 6), *_place(row, new)))
            if found is not None and found.digest and row.digest:
                raise BenchError(
                    f"{row.source} is another model in the new report: its masks have the digest {row.digest[:12]}… "
                    f"and had {found.digest[:12]}…. Only times of the same layers with the same zeros can be compared."
                )
        if found is not None:
            pairs.append((found, row))
    return pairs


def _place(row: Row, report: Report) -> tuple[str, int, int]:
    """Earlier versions wrote the number of threads once for all rows."""
    return row.runtime, row.batch, row.threads or int(report.machine.get("threads", 0))


def _change(old_row: Row, new_row: Row, dense: bool, old: Report, new: Report, least: float) -> Change:
    then, now = (_side(row, dense, report) for row, report in ((old_row, old), (new_row, new)))
    sure = max(0.0, then.confidence + now.confidence - 1)
    ratio = Interval(now.median / then.median, now.low / then.high, now.high / then.low, sure)
    words = {1: "slower", 0: "no change found", -1: "faster", None: "too few rounds to say"}
    return Change(
        source=new_row.source,
        runtime=new_row.runtime,
        sparsity=new_row.sparsity,
        batch=new_row.batch,
        threads=_place(new_row, new)[2],
        dense=dense,
        old_ms=then.median,
        new_ms=now.median,
        ratio=ratio,
        verdict=words[sign(ratio, least)],
        versions=(old_row.version, new_row.version),
    )


def _side(row: Row, dense: bool, report: Report) -> Interval:
    """The time of one side with at least 97.5 % confidence where its rounds reach that."""
    measures: Measures | None = row.dense if dense else row.sparse
    if measures is not None:
        return interval(measures.rounds_ms, EACH)
    found = row.dense_ms if dense else row.sparse_ms  # the extremes of the rounds, in earlier versions
    return Interval(found.median, found.low, found.high, 1 - 2.0 ** (1 - int(report.protocol.get("rounds", 1))))


def _pace(old: Report, new: Report) -> float | None:
    if old.noise is None or new.noise is None or not old.noise.reference_ms or not new.noise.reference_ms:
        return None
    return statistics.median(new.noise.reference_ms) / statistics.median(old.noise.reference_ms)


def _label(row: Row) -> str:
    threads = f", threads {row.threads}" if row.threads else ""
    return f"{row.source} at {row.sparsity:.1%} in {row.runtime}, batch {row.batch}{threads}"


def _labels(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return ", ".join(map(_label, rows[:3])) + more if rows else "no rows"
