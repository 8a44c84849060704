"""Metrics of a run: JSON lines, and TensorBoard events where tensorboard is installed.

The lines hold no times, so that two runs that compute the same write the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sparsify.errors import CheckpointError
from sparsify.files import DiskError


class Metrics:
    """An append-only file of JSON lines that continues at a known length after a resume."""

    def __init__(self, folder: Path, keep_bytes: int, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        self._events = _event_writer(folder / "tensorboard", step)
        self._file = self.path.open("ab")
        if self._file.tell() < keep_bytes:
            raise CheckpointError(
                f"{self.path} is shorter than when the checkpoint beside it was written: it was changed. "
                f"Restore it from a copy, or train again with another --out."
            )
        self._file.truncate(keep_bytes)
        self.last: dict[str, Any] = (read_metrics(folder) or [{}])[-1]

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write((json.dumps(line) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise DiskError(
                f"{self.path} could not be extended ({error.strerror}). The last checkpoint is unharmed. "
                f"Free some space and continue with --resume."
            ) from error
        if self._events is not None:
            for name, value in line.items():
                for label, number in _scalars(name, value):
                    self._events.add_scalar(label, number, line["step"])

    def sync(self) -> int:
        """Force the lines to disk; returns the file's length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


class NoMetrics:
    """What the ranks that write nothing have in the place of `Metrics`."""

    def __init__(self, folder: Path) -> None:
        self.last: dict[str, Any] = (read_metrics(folder) or [{}])[-1]

    def write(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> int:
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


def open_metrics(folder: Path, keep_bytes: int, step: int, writes: bool) -> Metrics | NoMetrics:
    """The metrics of a run that is at `step`, or on a rank that does not write, nothing."""
    return Metrics(folder, keep_bytes, step) if writes else NoMetrics(folder)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics; a line that was cut by a crash is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _scalars(name: str, value: object) -> Iterator[tuple[str, float]]:
    """The numbers of one entry as TensorBoard calls them; layers become "active_neurons/fc1.weight"."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _scalars(f"{name}/{key}", entry)
    elif isinstance(value, (int, float)) and name != "step":
        yield name, value


def _event_writer(folder: Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
