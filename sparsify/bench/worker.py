"""The process in which one runtime runs one model: `python -m sparsify.bench.worker RUNTIME MODEL THREADS`.

It reads one JSON command a line from standard input and answers each with one JSON line:
    {"inputs": FILE.npy, "outputs": FILE.npy}  run once, save the output
    {"seconds": S}                             time calls for S seconds, at least three -> {"times": [...]} in s
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import SparsifyError
from sparsify.runtimes import Run, load_runtime

LEAST_CALLS = 3


def main(name: str, model: str, threads: str) -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a runtime prints must not end up among the answers
    try:
        runtime = load_runtime(name)
        run = runtime.load(Path(model), int(threads))
    except SparsifyError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"version": runtime.version()}), file=answers, flush=True)
    inputs = np.zeros(0, np.float32)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if "inputs" in command:
            inputs = np.load(command["inputs"])
            np.save(command["outputs"], run(inputs))
            answer: dict[str, Any] = {}
        else:
            answer = {"times": measure(run, inputs, command["seconds"])}
        print(json.dumps(answer), file=answers, flush=True)


def measure(run: Run, inputs: np.ndarray, seconds: float) -> list[float]:
    """Duration of each call in seconds."""
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < LEAST_CALLS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - before)
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
