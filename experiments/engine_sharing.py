"""How the engine shares a machine: more threads than cores, two sessions at once, several callers, and peak memory.

python experiments/engine_sharing.py MODEL.onnx [--dense DENSE.onnx]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.engine import InferenceSession

THREADS, CALLERS = (1, 2, 4, 8), 4


def feeds(session: Any) -> dict[str, np.ndarray]:
    """Noise for every input, open sizes 1."""
    random = np.random.default_rng(0)
    shapes = {i.name: [size if isinstance(size, int) else 1 for size in i.shape] for i in session.get_inputs()}
    tokens = {i.name for i in session.get_inputs() if "int" in i.type}
    return {
        name: np.zeros(shape, np.int64) if name in tokens else random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def rate(session: InferenceSession, seconds: float) -> float:
    """Calls a second."""
    inputs = feeds(session)
    session.run(None, inputs)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        session.run(None, inputs)
        count += 1
    return count / (time.perf_counter() - start)


def together(sessions: Sequence[InferenceSession], seconds: float) -> list[float]:
    """Calls a second of callers that run at the same time, each with a session of the list."""
    found = [0.0] * len(sessions)

    def work(number: int) -> None:
        found[number] = rate(sessions[number], seconds)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _alone(path: Path, engine: str, threads: int, answer: Any) -> None:
    """In a process of its own: peak memory of opening a model and running it once, in MB."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session: Any = onnxruntime.InferenceSession(path, options)
    else:
        session = InferenceSession(path, threads=threads)
    session.run(None, feeds(session))
    unit = 1 if sys.platform == "darwin" else 1024
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def in_a_process(function: Callable[..., None], *arguments: Any) -> float:
    """What a function puts into its queue in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=function, args=(*arguments, answer))
    process.start()
    found = float(answer.get())
    process.join()
    return found


def main() -> None:
    """Print one line for each question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dense", type=Path, help="its dense twin, to compare memory with onnxruntime's")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # First, while this process is small: a new one starts from the peak of the one that it comes from.
    print(f"peak memory of a process: {in_a_process(_alone, given.model, 'sparsify', 2):.0f} MB")
    if given.dense:
        dense = in_a_process(_alone, given.dense, "onnxruntime", 2)
        print(f"peak memory of a process, dense twin in onnxruntime: {dense:.0f} MB")
    sessions = {count: InferenceSession(given.model, threads=count) for count in THREADS}
    rounds = [{count: rate(session, given.seconds) for count, session in sessions.items()} for _ in range(given.rounds)]
    for count in THREADS:
        ratio = statistics.median(found[2] / found[count] for found in rounds)
        print(f"{count} threads: {ratio:.2f} times the time of 2 threads")
    base = statistics.median(found[2] for found in rounds)
    two = [InferenceSession(given.model, threads=2) for _ in range(2)]
    for name, group in (("two sessions", two), (f"one session, {CALLERS} callers", two[:1] * CALLERS)):
        shares = [f"{found / base:.2f}" for found in together(group, given.seconds)]
        print(f"{name} at once: {', '.join(shares)} of the calls of one alone")


if __name__ == "__main__":
    main()
