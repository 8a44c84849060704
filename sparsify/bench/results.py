"""What a benchmark returns, and how a report that was written as JSON is read again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparsify.bench.noise import Noise
from sparsify.bench.statistics import Interval
from sparsify.errors import BenchError
from sparsify.registry import explain
from sparsify.runtimes import LayerTime

SHARES = [i / 20 for i in range(21)]  # of calls, at which `Measures.quantiles_ms` stands


@dataclass(frozen=True)
class Measures:
    """One file in one runtime. Calls are those of all rounds after the warm-up."""

    calls: int
    rounds_ms: list[float]  # median of each round's calls, milliseconds
    p50_ms: float
    p90_ms: float
    p99_ms: float
    quantiles_ms: list[float]  # latency that a share of the calls stay within, for 0, 5, ... 100 %
    throughput: float  # samples a second, calls one after another
    load_ms: float  # from a Python without the runtime to a model that is ready, imports included
    first_ms: float  # the first call
    memory_bytes: int | None  # peak of the runtime's process, None where the system does not tell
    stable: bool  # the warm-up ended because times had settled, not because it was given up
    layers: list[LayerTime] = field(default_factory=list)  # where they were asked for and the runtime gives them


@dataclass(frozen=True)
class Row:
    """One model in one runtime. Times are milliseconds a call.

    Fields with a default are missing in reports of earlier versions.
    """

    source: str
    runtime: str
    version: str
    sparsity: float
    batch: int
    sparse_ms: Interval
    dense_ms: Interval  # of the dense twin: the same network with no zeros
    speed_up: Interval  # over the dense twin in the same runtime
    verdict: str
    threads: int = 0
    digest: str = ""  # of the masks: names, shapes and positions of the connections
    file_bytes: int = 0
    best_dense: str = ""  # the runtime that runs the dense twin fastest
    against_best: Interval | None = None  # speed-up over the dense twin in that runtime
    sparse: Measures | None = None
    dense: Measures | None = None


@dataclass(frozen=True)
class BreakEven:
    """From which sparsity on a runtime gains from zeros, read off a sweep; None where it does not."""

    source: str
    runtime: str
    batch: int
    threads: int
    over_own: float | None  # against the dense twin in the same runtime
    over_best: float | None  # against the dense twin in whatever runtime is fastest


@dataclass(frozen=True)
class Report:
    """All rows, what was left out and why, and the machine."""

    rows: list[Row]
    left_out: dict[str, str]
    machine: dict[str, Any]
    largest_error: float  # relative, of any runtime's output against the reference
    protocol: dict[str, Any] = field(default_factory=dict)
    break_even: list[BreakEven] = field(default_factory=list)
    noise: Noise | None = None
    wrong: dict[str, str] = field(default_factory=dict)  # which runtime's output was wrong where, and by how much
    unfinished: list[str] = field(default_factory=list)  # places of the grid that were not reached


def read_report(path: Path) -> Report:
    """A report from the file that `sparsify bench --json` gave. Raises BenchError where it is none."""
    try:
        return TypeAdapter(Report).validate_json(path.read_bytes())
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}). Check the path.") from None
    except ValidationError as error:
        first = explain(error).splitlines()[0]
        raise BenchError(
            f"{path} is not a report of sparsify bench: {first} Reports are written by sparsify bench ... --json."
        ) from None
