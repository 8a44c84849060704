"""`benchmark`: models in runtimes, each beside its dense twin, over a grid of sparsities, batches and threads."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsify.bench.break_even import break_even
from sparsify.bench.machine import describe_machine
from sparsify.bench.noise import Observer
from sparsify.bench.protocol import Contender, ask_layers, compare_outputs, running, take_turns
from sparsify.bench.results import Report
from sparsify.bench.rows import Pair, rows_of
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
    minutes: float | None = None,
    layers: bool = False,
    changes: Sequence[str] = (),
    watch: Watch | None = None,
    save: Callable[[Report], None] | None = None,
) -> Report:
    """Time models against their dense twins in every runtime, outputs compared first.

    sources: model files, runs or recipes. runtimes: by default all that are installed. batch, threads: one or
    several; threads by default all cores. sparsities: of recipes, each freshly masked; by default the recipe's
    own. rounds: turns that each contender gets; below six nothing can be said with 95 % confidence. launches: over how
    many processes of its own, one after another, each contender's rounds are spread, because what a process gets by
    chance, such as where its memory lies, stays with it. seconds: length of one turn. minutes: after which no further
    model, sparsity, batch or number of threads is begun. layers: ask runtimes for the times of layers as well. watch:
    called after each turn. save: called with the report so far after each place of the grid.

    A runtime that fails at one place has no row there, and the report says why; one whose output is wrong is in
    `Report.wrong`. Raises BenchError where that leaves no row at all.
    """
    batches, counts = _listed(batch), _listed(threads or available_cores())
    if min(*batches, *counts, rounds, launches) < 1 or not seconds > 0 or (minutes is not None and not minutes > 0):
        raise BenchError("Batch, threads, rounds and launches must be at least 1, and seconds and minutes more than 0.")
    shares = [len(part) for part in np.array_split(range(rounds), min(launches, rounds))]
    settings = [[*changes, f"topology.sparsity={s}"] for s in sparsities] or [list(changes)]
    begun = time.monotonic()
    machine = describe_machine(max(counts))
    usable, left_out = _usable(runtimes)
    observer = Observer(min(max(counts), available_cores()))
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
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        subjects = _subjects([str(source) for source in sources], settings, Path(folder), watch)
        cases = [
            _Case(s, b, t, _willing(usable, s, left_out)) for s, b, t in itertools.product(subjects, batches, counts)
        ]
        report = Report([], left_out, machine, 0.0, protocol)
        progress = _Progress(cases, rounds + len(shares), watch)
        for number, case in enumerate(cases):
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                break
            pairs, error = _time(case, shares, seconds, layers, observer, progress)
            rows = [*report.rows, *rows_of(case.subject, case.batch, [pair for pair in pairs if not _failed(pair)])]
            failed = [contender for pair in pairs for contender in pair if contender.failure is not None]
            report = Report(
                rows,
                report.left_out | _reasons(case, [contender for contender in failed if not contender.wrong]),
                machine,
                max(report.largest_error, error),
                protocol,
                break_even(rows),
                observer.noise(),
                report.wrong | _reasons(case, [contender for contender in failed if contender.wrong]),
                [later.name for later in cases[number + 1 :]],
            )
            if save is not None:
                save(report)
    if not report.rows:
        reasons = report.wrong | report.left_out
        raise BenchError(f"Nothing could be timed. {'. '.join(f'{what}: {why}' for what, why in reasons.items())}.")
    return report


def _time(
    case: _Case, shares: Sequence[int], seconds: float, layers: bool, observer: Observer, progress: _Progress
) -> tuple[list[Pair], float]:
    """All rounds of one place in the grid; returns its contenders and the largest error of their outputs."""
    files = (case.subject.sparse, case.subject.dense)
    contenders = [Contender(runtime, path, case.threads) for runtime in case.runtimes for path in files]
    pairs = list(zip(contenders[::2], contenders[1::2], strict=True))
    largest_error = 0.0
    for launch, share in enumerate(shares, 1):
        left = [contender for pair in pairs if not _failed(pair) for contender in pair]
        if not left:
            break
        with running(left):
            error = compare_outputs(left, case.subject.sample(case.batch, 0))
            for contender in take_turns(left, share, seconds, observer):
                progress.tell(case, contender)
            # Once more and on another input: whoever answers from memory is found out.
            again = compare_outputs(left, case.subject.sample(case.batch, 1))
            if layers and launch == len(shares):
                ask_layers(left)
        largest_error = max(largest_error, error, again)
    progress.finish(case)
    return pairs, largest_error


def _reasons(case: _Case, failed: Sequence[Contender]) -> dict[str, str]:
    """Why they failed; where the dense twin did as well, why the model itself did."""
    return {f"{contender.runtime} on {case.name}": contender.failure or "" for contender in reversed(failed)}


def _failed(pair: Pair) -> bool:
    return any(contender.failure is not None for contender in pair)


class _Progress:
    """Counts turns for whoever watches."""

    def __init__(self, cases: Sequence[_Case], turns: int, watch: Watch | None) -> None:
        self._turns = turns  # of each contender in each case
        self._total = sum(2 * len(case.runtimes) * turns for case in cases)
        self._watch = watch
        self._done = self._before = 0

    def tell(self, case: _Case, contender: Contender) -> None:
        self._done += 1
        if self._watch is not None:
            median = 1e3 * statistics.median(contender.rounds[-1]) if contender.rounds else None
            dense = contender.model == case.subject.dense
            self._watch(Turn(self._done, self._total, case.name, contender.runtime, dense, median))

    def finish(self, case: _Case) -> None:
        """Turns that who failed did not take count as done."""
        self._before += 2 * len(case.runtimes) * self._turns
        self._done = self._before


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
