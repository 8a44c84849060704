"""The protocol: outputs compared before anything is timed, then rounds in which all take turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import BenchError

TOLERANCE = 1e-3  # relative error of float32 outputs against the reference


@dataclass(eq=False)
class Contender:
    """One model in one runtime, in a process that waits for its turn."""

    runtime: str
    model: Path
    threads: int
    version: str = ""
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each call, by round
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "sparsify.bench.worker",
            self.runtime,
            str(self.model),
            str(self.threads),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.version = self._answer()["version"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its last words are read below
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise BenchError(
                f"{self.runtime} ended while running {self.model.name} (exit {self.process.returncode}): {last}. "
                f"Leave it out with --runtime, or run it by itself to see more."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer


@contextlib.contextmanager
def running(contenders: list[Contender]) -> Iterator[None]:
    """All contenders' processes, started one after another and ended whatever happens."""
    try:
        for contender in contenders:
            contender.start()
        yield
    finally:
        for contender in contenders:
            contender.stop()


def compare_outputs(contenders: list[Contender], inputs: np.ndarray) -> dict[Path, float]:
    """Run every contender once and hold it against the first one that runs the same model.

    Returns the largest relative error of each model's contenders. Raises BenchError for a wrong output.
    """
    errors: dict[Path, float] = {}
    expected: dict[Path, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        given, returned = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(given, inputs)
        for contender in contenders:
            contender.ask({"inputs": str(given), "outputs": str(returned)})
            found = np.load(returned)
            reference = expected.setdefault(contender.model, found)
            error = relative_error(found, reference)
            if not error < TOLERANCE:
                raise BenchError(
                    f"{contender.runtime} computes something else from {contender.model.name} than "
                    f"{contenders[0].runtime}: relative error {error:.1e}. A wrong result has no speed, so "
                    f"nothing was timed. Leave it out with --runtime and report this to its makers."
                )
            errors[contender.model] = max(error, errors.get(contender.model, 0.0))
    return errors


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||; infinite where shapes differ or anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))


def take_turns(contenders: list[Contender], rounds: int, seconds: float) -> Iterator[int]:
    """Time everyone once a round, after one round of warm-up; yields the turns that are done."""
    for turn in range(rounds + 1):
        for place, contender in enumerate(contenders):
            times = contender.ask({"seconds": seconds})["times"]
            if turn:
                contender.rounds.append(times)
            yield turn * len(contenders) + place + 1
