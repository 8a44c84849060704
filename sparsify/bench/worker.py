"""The process in which one runtime runs one model: `python -m sparsify.bench.worker RUNTIME MODEL THREADS`.

It says when the model is ready, {"version": ..., "load": S}, then reads one JSON command a line from standard input
and answers each with one JSON line:
    {"inputs": FILE.npy, "outputs": FILE.npy}  run once, save the output -> {"first": S}
    {"warm_up": S}                             call for windows of S seconds until times settle -> {"stable": bool}
    {"seconds": S}                             time calls for S seconds, at least three -> {"times": [...]}
    {"layers": true}                           the times of the model's layers -> {"layers": [...]}
Every answer also has "cpu", the seconds of CPU time that the process has taken, and "memory", its peak in bytes.
Times are seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import BenchError, SparsifyError
from sparsify.runtimes import Run, load_runtime

LEAST_CALLS = 3
SETTLED = 0.03  # medians of two windows within this are the same
WINDOWS = 12  # after which a warm-up is given up


def main(name: str, model: str, threads: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints, also from C, must not end up among the answers

    def answer(content: dict[str, Any]) -> None:
        content |= {"cpu": time.process_time(), "memory": peak_memory()}
        print(json.dumps(content), file=answers, flush=True)

    start = time.perf_counter()
    try:
        runtime = load_runtime(name)
        if reason := runtime.missing():  # in an environment of its own, where nobody has looked before
            raise BenchError(f"{name} cannot run in {sys.executable}: {reason}.")
        run = runtime.load(Path(model), int(threads))
    except SparsifyError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    answer({"version": runtime.version(), "load": time.perf_counter() - start})
    inputs = np.zeros(0, np.float32)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if "inputs" in command:
            inputs = np.load(command["inputs"])
            start = time.perf_counter()
            outputs = run(inputs)
            first = time.perf_counter() - start
            np.save(command["outputs"], outputs)
            answer({"first": first})
        elif "warm_up" in command:
            answer({"stable": warm_up(run, inputs, command["warm_up"])})
        elif "layers" in command:
            layers = runtime.layers(Path(model), int(threads), inputs)
            answer({"layers": [dataclasses.asdict(layer) for layer in layers]})
        else:
            run(inputs)  # brings back into the caches what the others' turns drove out
            answer({"times": measure(run, inputs, command["seconds"])})


def warm_up(run: Run, inputs: np.ndarray, seconds: float) -> bool:
    """Call for windows of `seconds` until the medians of two after one another agree; whether they ever did."""
    before = 0.0
    for _ in range(WINDOWS):
        median = statistics.median(measure(run, inputs, seconds))
        if abs(median - before) <= SETTLED * median:
            return True
        before = median
    return False


def measure(run: Run, inputs: np.ndarray, seconds: float) -> list[float]:
    """Duration of each call in seconds."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < LEAST_CALLS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - before)
    return times


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most; None where the system does not tell.

    Not getrusage: Linux lets a child inherit its parent's maximum.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main(*sys.argv[1:])
