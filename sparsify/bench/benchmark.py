"""`benchmark`: models in runtimes, each beside its dense twin."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsify.bench.machine import describe_machine
from sparsify.bench.protocol import Contender, compare_outputs, running, take_turns
from sparsify.bench.statistics import Interval, interval, speed_up, verdict
from sparsify.engine import InferenceSession
from sparsify.engine.explain import Explanation
from sparsify.engine.target import available_cores
from sparsify.errors import BenchError
from sparsify.formats import SparseModel, densified
from sparsify.formats import onnx as onnx_format
from sparsify.formats._onnx_file import OnnxModel
from sparsify.registry import names
from sparsify.runtimes import load_runtime
from sparsify.sources import open_source

REFERENCE = "onnxruntime"
EXPLAINED_RUNS = 10


@dataclass(frozen=True)
class Row:
    """One model in one runtime. Times are milliseconds a call."""

    source: str
    runtime: str
    version: str
    sparsity: float
    batch: int
    sparse_ms: Interval
    dense_ms: Interval  # of the dense twin: the same network with no zeros
    speed_up: Interval
    verdict: str


@dataclass(frozen=True)
class Report:
    """All rows, what was left out and why, and the machine."""

    rows: list[Row]
    left_out: dict[str, str]
    machine: dict[str, Any]
    largest_error: float  # relative, of any runtime's output against the reference
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Subject:
    """A source with its two ONNX files."""

    source: str
    sparsity: float
    sparse: Path
    dense: Path
    sample: Callable[[int], np.ndarray]  # random inputs [batch, ...]


def benchmark(
    sources: Sequence[str | Path],
    runtimes: Sequence[str] | None = None,
    *,
    batch: int = 1,
    threads: int | None = None,
    rounds: int = 7,
    seconds: float = 0.3,
    changes: Sequence[str] = (),
    watch: Callable[[int, int], None] | None = None,
) -> Report:
    """Time models against their dense twins in every runtime, outputs compared first.

    sources: model files, runs or recipes. runtimes: by default all that are installed. threads: by default all
    cores. rounds: turns that each contender gets; seconds: length of one turn. watch: called with the turns
    that are done and all of them. Raises BenchError where an output is wrong or a runtime fails.
    """
    threads = threads or available_cores()
    if min(batch, threads, rounds) < 1 or not seconds > 0:
        raise BenchError("Batch, threads and rounds must be at least 1, and seconds more than 0.")
    machine = describe_machine(threads)
    usable, left_out = _usable(runtimes)
    rows, largest_error, done = [], 0.0, 0
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        subjects = [_prepare(str(s), Path(folder) / str(i), changes) for i, s in enumerate(sources)]
        jobs = []
        for subject in subjects:
            for runtime in usable:
                refusal = load_runtime(runtime).refuses(subject.sparse)
                if refusal:
                    left_out[f"{runtime} on {subject.source}"] = refusal
                else:
                    jobs.append((subject, runtime))
        total = 2 * len(jobs) * (rounds + 1)
        for subject in subjects:
            mine = [runtime for s, runtime in jobs if s is subject]
            contenders = [Contender(r, p, threads) for r in mine for p in (subject.sparse, subject.dense)]
            inputs = subject.sample(batch)
            with running(contenders):
                largest_error = max([largest_error, *compare_outputs(contenders, inputs).values()])
                for turn in take_turns(contenders, rounds, seconds):
                    if watch is not None:
                        watch(done + turn, total)
            done += len(contenders) * (rounds + 1)
            rows += [_row(subject, batch, *contenders[i : i + 2]) for i in range(0, len(contenders), 2)]
    protocol = {
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "reference": REFERENCE,
    }
    return Report(rows, left_out, machine, largest_error, protocol)


def explain(
    source: str | Path, *, batch: int = 1, threads: int | None = None, changes: Sequence[str] = ()
) -> Explanation:
    """What our engine runs for a source, step by step: kernel, why, density, work and time."""
    with tempfile.TemporaryDirectory(prefix="sparsify-explain-") as folder:
        subject = _prepare(str(source), Path(folder) / "model", changes)
        session = InferenceSession(subject.sparse, threads=threads or available_cores())
        inputs = subject.sample(batch)
        for _ in range(EXPLAINED_RUNS):  # times are those of the last run
            session.run(None, {session.get_inputs()[0].name: inputs})
        return session.explain()


def _usable(asked: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Names of the runtimes that can run here, the reference first, and why others cannot."""
    chosen = [name.replace("-", "_") for name in asked] if asked else names("runtimes")
    chosen = sorted(dict.fromkeys([*chosen, REFERENCE]), key=lambda name: name != REFERENCE)
    reasons = {name: load_runtime(name).missing() for name in chosen}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if REFERENCE in left_out:
        raise BenchError(f"Outputs are compared with {REFERENCE}, and {left_out[REFERENCE]}. Install it.")
    return [name for name in chosen if name not in left_out], left_out


def _prepare(source: str, folder: Path, changes: Sequence[str]) -> _Subject:
    """Write the source and its dense twin as ONNX files, unless it is one already."""
    folder.mkdir()
    sparse, dense = folder / "sparse.onnx", folder / "dense.onnx"
    model = open_source(source, changes)
    if model.metadata is not None:
        if Path(source).suffix == onnx_format.SUFFIX:
            sparse = Path(source)
        else:
            onnx_format.write(model, sparse)
        onnx_format.write(densified(model), dense)
        return _Subject(source, model.metadata.sparsity, sparse, dense, model.metadata.network.sample)
    graph = onnx_format.write_twin(Path(source), model, dense)
    shape = _foreign_input(graph, source)

    def sample(batch: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)

    return _Subject(source, _sparsity(model), Path(source), dense, sample)


def _foreign_input(graph: OnnxModel, source: str) -> tuple[int, ...]:
    inputs = [value for value in graph.proto.graph.input if value.name not in graph.tensors]
    shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim][1:] if len(inputs) == 1 else [0]
    if not shape or min(shape) < 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BenchError(f"{source} needs one float32 input whose shape is fixed but for the batch to be timed.")
    return tuple(shape)


def _sparsity(model: SparseModel) -> float:
    masks = model.masks().values()
    return 1 - sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))


def _row(subject: _Subject, batch: int, sparse: Contender, dense: Contender) -> Row:
    ratio = speed_up(dense.rounds, sparse.rounds)
    return Row(
        source=subject.source,
        runtime=sparse.runtime,
        version=sparse.version,
        sparsity=subject.sparsity,
        batch=batch,
        sparse_ms=_milliseconds(sparse),
        dense_ms=_milliseconds(dense),
        speed_up=ratio,
        verdict=verdict(ratio),
    )


def _milliseconds(contender: Contender) -> Interval:
    return interval([1e3 * statistics.median(times) for times in contender.rounds])
