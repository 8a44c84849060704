"""What contenders have measured, as rows of the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from sparsify.bench.protocol import Contender
from sparsify.bench.results import SHARES, Measures, Row
from sparsify.bench.statistics import Interval, interval, quantiles, speed_up, verdict
from sparsify.bench.subjects import Subject

Pair = tuple[Contender, Contender]  # a model and its dense twin in one runtime


def rows_of(subject: Subject, batch: int, pairs: Sequence[Pair]) -> Iterator[Row]:
    """A row for each pair, all of one place in the grid."""
    best = min((dense for _, dense in pairs), key=lambda contender: _milliseconds(contender).median, default=None)
    for sparse, dense in pairs:
        assert best is not None
        ratio = speed_up(dense.rounds, sparse.rounds)
        yield Row(
            source=subject.source,
            runtime=sparse.runtime,
            version=sparse.version,
            sparsity=subject.sparsity,
            batch=batch,
            sparse_ms=_milliseconds(sparse),
            dense_ms=_milliseconds(dense),
            speed_up=ratio,
            verdict=verdict(ratio),
            threads=sparse.threads,
            digest=subject.digest,
            file_bytes=subject.file_bytes,
            best_dense=best.runtime,
            against_best=speed_up(best.rounds, sparse.rounds),
            sparse=_measures(sparse, batch),
            dense=_measures(dense, batch),
        )


def _measures(contender: Contender, batch: int) -> Measures:
    times = [seconds for turn in contender.rounds for seconds in turn]
    milliseconds = [1e3 * seconds for seconds in times]
    p50, p90, p99 = quantiles(milliseconds, (0.5, 0.9, 0.99))
    return Measures(
        calls=len(times),
        rounds_ms=_medians(contender),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        quantiles_ms=quantiles(milliseconds, SHARES),
        throughput=batch * len(times) / sum(times),
        load_ms=1e3 * statistics.median(contender.load),
        first_ms=1e3 * statistics.median(contender.first),
        memory_bytes=contender.memory,
        stable=contender.stable,
        layers=contender.layers,
    )


def _medians(contender: Contender) -> list[float]:
    return [1e3 * statistics.median(turn) for turn in contender.rounds]


def _milliseconds(contender: Contender) -> Interval:
    return interval(_medians(contender))
