"""The protocol: outputs compared before anything is timed, then rounds in which all take turns."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.bench.noise import Observer
from sparsify.errors import BenchError, SparsifyError
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
PATIENCE = 600.0  # seconds that a runtime may take for anything it is asked


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
    failure: str | None = None  # why it gets no time: how its process ended, or that its output is wrong
    wrong: bool = False  # the failure is a wrong output
    process: subprocess.Popen[str] | None = None
    words: Path | None = None  # what it writes to standard error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What goes wrong in the block ends this contender and nobody else."""
        try:
            yield
        except SparsifyError as error:
            self.failure = str(error)
            self.stop()

    def start(self, folder: Path) -> None:
        """Start the process, in the runtime's own environment where it has one; `folder` is for what it needs."""
        runtime = load_runtime(self.runtime)
        folder.mkdir()
        model = runtime.prepared(self.model, folder)
        # Our package alone, and not what is installed beside it: that may be made for another interpreter.
        command = [runtime.python(), "-c", BOOTSTRAP, str(PACKAGE), self.runtime, str(model), str(self.threads)]
        self.words = folder / "stderr"  # a file: nobody empties a pipe while times are taken
        with self.words.open("w") as words:
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True
                )
            except OSError as error:
                raise BenchError(f"{command[0]} cannot be started ({error.strerror})") from None
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
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(BrokenPipeError):  # of a command that it never read
                self.process.stdin.close()
            self.process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        patience = threading.Timer(PATIENCE, self.process.kill)
        patience.start()
        try:
            line = self.process.stdout.readline()
            late = not patience.is_alive()
        finally:  # after an interrupt too, or Python would wait for it before it ends
            patience.cancel()
        if late:
            raise BenchError(f"it gave no answer within {PATIENCE:g} seconds while it ran {self.model.name}")
        if not line:
            raise BenchError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        self.cpu = answer["cpu"]
        if answer["memory"] is not None:
            self.memory = max(self.memory or 0, answer["memory"])
        return answer

    def _last_words(self) -> str:
        assert self.process is not None and self.words is not None
        code = self.process.wait()
        end = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        if code == -signal.SIGKILL:
            end += ", as when memory runs out"
        last = (self.words.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        return f"its process ended while it ran {self.model.name} ({end}): {last.rstrip('.')}"


@contextlib.contextmanager
def running(contenders: list[Contender]) -> Iterator[None]:
    """All contenders' processes, started one after another and ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        try:
            for number, contender in enumerate(contenders):
                with contender.alone():
                    contender.start(Path(folder) / str(number))
            yield
        finally:
            for contender in contenders:
                contender.stop()


def compare_outputs(contenders: list[Contender], inputs: np.ndarray) -> float:
    """Run every contender once and hold it against the reference, the first one, on the same model.

    Returns the largest relative error of those that pass. The others fail, and with the reference all do.
    """
    largest = 0.0
    expected: dict[Path, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="sparsify-bench-") as folder:
        given, returned = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(given, inputs)
        for contender in alive(contenders):
            with contender.alone():
                seconds = contender.ask({"inputs": str(given), "outputs": str(returned)})["first"]
                if len(contender.first) < len(contender.load):
                    contender.first.append(seconds)
                error = _error(contender, np.load(returned), expected, contenders[0].runtime)
                largest = max(error, largest)
    return largest


def _error(contender: Contender, found: np.ndarray, expected: dict[Path, np.ndarray], reference: str) -> float:
    """The relative error of an output; the reference's own is what is expected. Raises BenchError where it is wrong."""
    if contender.model not in expected and contender.runtime != reference:
        raise BenchError(f"there is no output of {reference} to hold its own against")
    error = relative_error(found, expected.setdefault(contender.model, found))
    if not error < load_runtime(contender.runtime).tolerance:
        contender.wrong = True
        raise BenchError(
            f"{contender.runtime} computes something else from {contender.model.name} than {reference}: relative "
            f"error {error:.1e}. A wrong result has no speed, so it is not timed. Leave it out with --runtime and "
            f"report this to its makers."
        )
    return error


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||; infinite where shapes differ or anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all() or not np.isfinite(expected).all():
        return float("inf")
    wide = expected.astype(np.float64)  # whose squares float32 might not hold
    return float(np.linalg.norm(found - wide) / (np.linalg.norm(wide) + 1e-30))


def take_turns(
    contenders: list[Contender], rounds: int, seconds: float, observer: Observer | None = None
) -> Iterator[Contender]:
    """Warm everyone up, then time everyone once a round; yields whose turn is done, the warm-up being the first.

    The order is another one in each round, so that nobody always follows the same neighbour. Who has failed is passed
    over.
    """
    for contender in alive(contenders):
        with contender.alone():
            contender.stable &= contender.ask({"warm_up": seconds / 2})["stable"]
        yield contender
    begun = sum(contender.cpu for contender in contenders)
    if observer is not None:
        observer.start()
    for _ in range(rounds):
        done = max(len(contender.rounds) for contender in contenders)
        for place in np.random.default_rng(done).permutation(len(contenders)):
            contender = contenders[place]
            if contender.failure is None:
                with contender.alone():
                    contender.rounds.append(contender.ask({"seconds": seconds})["times"])
                yield contender
        if observer is not None:
            observer.tick()
    if observer is not None:
        observer.stop(sum(contender.cpu for contender in contenders) - begun)


def ask_layers(contenders: list[Contender]) -> None:
    """Let every contender say what its layers take; it keeps its peak of memory from before."""
    for contender in alive(contenders):
        memory = contender.memory
        with contender.alone():
            contender.layers = [LayerTime(**layer) for layer in contender.ask({"layers": True})["layers"]]
        contender.memory = memory


def alive(contenders: list[Contender]) -> list[Contender]:
    """Those that have not failed."""
    return [contender for contender in contenders if contender.failure is None]
