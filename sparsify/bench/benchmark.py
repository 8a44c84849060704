"""`benchmark`: models in runtimes, each beside its dense twin, over a grid of sparsities, batches and threads."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsify.bench.break_even import break_even
from sparsify.bench.machine import describe_machine
from sparsify.bench.noise import Observer
from sparsify.bench.protocol import Contender, ask_layers, compare_outputs, running, take_turns
from sparsify.bench.results import SHARES, Measures, Report, Row
from sparsify.bench.statistics import Interval, interval, quantiles, speed_up, verdict
from sparsify.bench.subjects import Subject, prepare
from sparsify.engine import InferenceSession
from sparsify.engine.explain import Explanation
from sparsify.engine.target import available_cores
from sparsify.errors import BenchError
from sparsify.registry import names
from sparsify.runtimes import load_runtime

REFERENCE = "onnxruntime"
EXPLAINED_RUNS = 10


@dataclass(frozen=True)
class Turn:
    """One turn that is done, or one model that is written before all turns, for whoever watches."""

    done: int
    total: int
    case: str  # the model and its place in the grid
    runtime: str = ""  # none while models are written
    dense: bool = False  # the dense twin's turn
    median_ms: float | None = None  # of this turn; None in the warm-up


Watch = Callable[[Turn], None]


@dataclass(frozen=True)
class _Case:
    """One point of the grid."""

    subject: Subject
    batch: int
    threads: int
    runtimes: list[str]

    @property
    def name(self) -> str:
        return f"{self.subject.source} {self.subject.sparsity:.0%} batch {self.batch} threads {self.threads}"


def benchmark(
    sources: Sequence[str | Path],
    runtimes: Sequence[str] | None = None,
    *,
    batch: int | Sequence[int] = 1,
    threads: int | Sequence[int] | None = None,
    sparsities: Sequence[float] = (),
    rounds: int = 9,
    launches: int = 3,
    seconds: float = 0.25,
    layers: bool = False,
    changes: Sequence[str] = (),
    watch: Watch | None = None,
) -> Report:
    """Time models against their dense twins in every runtime, outputs compared first.

    sources: model files, runs or recipes. runtimes: by default all that are installed. batch, threads: one or
    several; threads by default all cores. sparsities: of recipes, each freshly masked; by default the recipe's
    own. rounds: turns that each contender gets; below six nothing can be said with 95 % confidence. launches: over how
    many processes of its own, one after another, each contender's rounds are spread, because what a process gets by
    chance, such as where its memory lies, stays with it. seconds: length of one turn. layers: ask runtimes for the
    times of layers as well. watch: called after each turn. Raises BenchError where an output is wrong or a runtime
    fails.
    """
    batches, counts = _listed(batch), _listed(threads or available_cores())
    if min(*batches, *counts, rounds, launches) < 1 or not seconds > 0:
        raise BenchError("Batch, threads, rounds and launches must be at least 1, and seconds more than 0.")
    shares = [len(part) for part in np.array_split(range(rounds), min(launches, rounds))]
    settings = [[*changes, f"topology.sparsity={s}"] for s in sparsities] or [list(changes)]
    machine = describe_machine(max(counts))
    usable, left_out = _usable(runtimes)
    observer = Observer(min(max(counts), available_cores()))
    rows: list[Row] = []
    largest_error, done = 0.0, 0
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        subjects = _subjects([str(source) for source in sources], settings, Path(folder), watch)
        cases = [
            _Case(s, b, t, _willing(usable, s, left_out)) for s, b, t in itertools.product(subjects, batches, counts)
        ]
        total = sum(2 * len(case.runtimes) * (rounds + len(shares)) for case in cases)
        for case in cases:
            contenders = _contenders(case)
            for launch, share in enumerate(shares, 1):
                with running(contenders):
                    errors = compare_outputs(contenders, case.subject.sample(case.batch, 0))
                    for contender in take_turns(contenders, share, seconds, observer):
                        done += 1
                        if watch is not None:
                            watch(_turn(done, total, case, contender))
                    # Once more and on another input: whoever answers from memory is found out.
                    again = compare_outputs(contenders, case.subject.sample(case.batch, 1))
                    if layers and launch == len(shares):
                        ask_layers(contenders)
                largest_error = max([largest_error, *errors.values(), *again.values()])
            rows += _rows(case, contenders)
    protocol = {
        "batch": batches[0],
        "batches": batches,
        "threads": counts[0],
        "thread_counts": counts,
        "rounds": rounds,
        "launches": len(shares),
        "seconds": seconds,
        "reference": REFERENCE,
    }
    return Report(rows, left_out, machine, largest_error, protocol, break_even(rows), observer.noise())


def explain(
    source: str | Path, *, batch: int = 1, threads: int | None = None, changes: Sequence[str] = ()
) -> Explanation:
    """What our engine runs for a source, step by step: kernel, why, density, work and time."""
    with tempfile.TemporaryDirectory(prefix="sparsify-explain-") as folder:
        subject = prepare(str(source), Path(folder) / "model", changes)
        session = InferenceSession(subject.sparse, threads=threads or available_cores())
        inputs = subject.sample(batch, 0)
        for _ in range(EXPLAINED_RUNS):  # times are those of the last run
            session.run(None, {session.get_inputs()[0].name: inputs})
        return session.explain()


def _listed(value: int | Sequence[int]) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    if not found:
        raise BenchError("Name at least one batch and one number of threads.")
    return found


def _subjects(sources: list[str], settings: list[list[str]], folder: Path, watch: Watch | None) -> list[Subject]:
    """Each source at each setting; those of one source share the dense twin."""
    found: list[Subject] = []
    for source, setting in itertools.product(sources, settings):
        before = found[-1] if setting is not settings[0] else None
        found.append(prepare(source, folder / str(len(found)), setting, before))
        if watch is not None:
            watch(Turn(len(found), len(sources) * len(settings), f"writing {source} {found[-1].sparsity:.0%}"))
    return found


def _usable(asked: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Names of the runtimes that can run here, the reference first, and why others cannot."""
    chosen = [name.replace("-", "_") for name in asked] if asked else names("runtimes")
    chosen = sorted(dict.fromkeys([*chosen, REFERENCE]), key=lambda name: name != REFERENCE)
    reasons = {name: load_runtime(name).missing() for name in chosen}
    if not asked:
        later = {name: load_runtime(name).on_request for name in chosen}
        reasons |= {
            name: f"it {why}: name it with --runtime" for name, why in later.items() if why and not reasons[name]
        }
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if REFERENCE in left_out:
        raise BenchError(f"Outputs are compared with {REFERENCE}, and {left_out[REFERENCE]}. Install it.")
    return [name for name in chosen if name not in left_out], left_out


def _willing(usable: list[str], subject: Subject, left_out: dict[str, str]) -> list[str]:
    """Those that take this model; why others do not is added to `left_out`."""
    refusals = {name: load_runtime(name).refuses(subject.sparse) for name in usable}
    left_out |= {f"{name} on {subject.source}": reason for name, reason in refusals.items() if reason}
    return [name for name in usable if not refusals[name]]


def _contenders(case: _Case) -> list[Contender]:
    """The sparse model and the dense twin in each runtime, one after the other."""
    files = (case.subject.sparse, case.subject.dense)
    return [Contender(runtime, path, case.threads) for runtime in case.runtimes for path in files]


def _turn(done: int, total: int, case: _Case, contender: Contender) -> Turn:
    median = 1e3 * statistics.median(contender.rounds[-1]) if contender.rounds else None
    return Turn(done, total, case.name, contender.runtime, contender.model == case.subject.dense, median)


def _rows(case: _Case, contenders: list[Contender]) -> Iterator[Row]:
    subject = case.subject
    best = min(contenders[1::2], key=lambda contender: _milliseconds(contender).median)
    for sparse, dense in zip(contenders[::2], contenders[1::2], strict=True):
        ratio = speed_up(dense.rounds, sparse.rounds)
        yield Row(
            source=subject.source,
            runtime=sparse.runtime,
            version=sparse.version,
            sparsity=subject.sparsity,
            batch=case.batch,
            sparse_ms=_milliseconds(sparse),
            dense_ms=_milliseconds(dense),
            speed_up=ratio,
            verdict=verdict(ratio),
            threads=case.threads,
            digest=subject.digest,
            file_bytes=subject.file_bytes,
            best_dense=best.runtime,
            against_best=speed_up(best.rounds, sparse.rounds),
            sparse=_measures(sparse, case.batch),
            dense=_measures(dense, case.batch),
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
