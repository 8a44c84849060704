"""The protocol: outputs compared before anything is timed, then rounds in which all take turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.bench.noise import Observer
from sparsify.errors import BenchError
from sparsify.registry import PACKAGE
from sparsify.runtimes import LayerTime, load_runtime

BOOTSTRAP = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("sparsify", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["sparsify"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from sparsify.bench import worker
worker.main(*sys.argv[2:])
"""


@dataclass(eq=False)
class Contender:
    """One model in one runtime, in a process that waits for its turn, and in another one after that."""

    runtime: str
    model: Path
    threads: int
    version: str = ""
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each call, by round
    load: list[float] = field(default_factory=list)  # seconds, of each process
    first: list[float] = field(default_factory=list)  # seconds of the first call, of each process
    stable: bool = True  # after every warm-up
    memory: int | None = None  # bytes at most in any process
    cpu: float = 0.0  # seconds of CPU time of this process
    layers: list[LayerTime] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self, folder: Path) -> None:
        """Start the process, in the runtime's own environment where it has one; `folder` is for what it needs."""
        runtime = load_runtime(self.runtime)
        folder.mkdir()
        model = runtime.prepared(self.model, folder)
        # Our package alone, and not what is installed beside it: that may be made for another interpreter.
        command = [runtime.python(), "-c", BOOTSTRAP, str(PACKAGE), self.runtime, str(model), str(self.threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        answer = self._answer()
        self.version = answer["version"]
        self.load.append(answer["load"])

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
        self.cpu = answer["cpu"]
        if answer["memory"] is not None:
            self.memory = max(self.memory or 0, answer["memory"])
        return answer


@contextlib.contextmanager
def running(contenders: list[Contender]) -> Iterator[None]:
    """All contenders' processes, started one after another and ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        try:
            for number, contender in enumerate(contenders):
                contender.start(Path(folder) / str(number))
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
            seconds = contender.ask({"inputs": str(given), "outputs": str(returned)})["first"]
            if len(contender.first) < len(contender.load):
                contender.first.append(seconds)
            found = np.load(returned)
            reference = expected.setdefault(contender.model, found)
            error = relative_error(found, reference)
            if not error < load_runtime(contender.runtime).tolerance:
                raise BenchError(
                    f"{contender.runtime} computes something else from {contender.model.name} than "
                    f"{contenders[0].runtime}: relative error {error:.1e}. A wrong result has no speed, so "
                    f"it is not timed. Leave it out with --runtime and report this to its makers."
                )
            errors[contender.model] = max(error, errors.get(contender.model, 0.0))
    return errors


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||; infinite where shapes differ or anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-30))


def take_turns(
    contenders: list[Contender], rounds: int, seconds: float, observer: Observer | None = None
) -> Iterator[Contender]:
    """Warm everyone up, then time everyone once a round; yields whose turn is done, the warm-up being the first.

    The order is another one in each round, so that nobody always follows the same neighbour.
    """
    for contender in contenders:
        contender.stable &= contender.ask({"warm_up": seconds / 2})["stable"]
        yield contender
    begun = [contender.cpu for contender in contenders]
    if observer is not None:
        observer.start()
    for _ in range(rounds):
        done = len(contenders[0].rounds)
        for place in np.random.default_rng(done).permutation(len(contenders)):
            contender = contenders[place]
            contender.rounds.append(contender.ask({"seconds": seconds})["times"])
            yield contender
        if observer is not None:
            observer.tick()
    if observer is not None:
        observer.stop(sum(c.cpu for c in contenders) - sum(begun))


def ask_layers(contenders: list[Contender]) -> None:
    """Let every contender say what its layers take; it keeps its peak of memory from before."""
    for contender in contenders:
        memory = contender.memory
        contender.layers = [LayerTime(**layer) for layer in contender.ask({"layers": True})["layers"]]
        contender.memory = memory
