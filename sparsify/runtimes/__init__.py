"""Inference runtimes. One file each, one final class each.

A runtime turns an ONNX file into a function from an input array to an output array. It is imported only in
the process that runs it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from sparsify.registry import load_class

REDUCED = 5e-2  # tolerance of runtimes that compute in TF32 or bfloat16
PROFILED_RUNS = 11  # of which `layers` gives medians

Run = Callable[[np.ndarray], np.ndarray]  # [n, ...] float32, or tokens [n, t] int64 -> [n, ..., classes] float32


@dataclass(frozen=True)
class LayerTime:
    """One step of a run, as the runtime itself divides it."""

    name: str  # as the runtime calls it
    operation: str
    ms: float  # median over some runs
    density: float | None = None  # of its weights, where the runtime knows


class Runtime(ABC):
    """What every runtime says of itself and does."""

    package: ClassVar[str]  # the distribution that it comes in; its version is recorded
    tolerance: ClassVar[float] = 1e-3  # relative error of its outputs that is no error
    on_request: ClassVar[str | None] = None  # why it is timed only where it is named
    on_cuda: ClassVar[bool] = False  # it needs a CUDA device
    runs_module: ClassVar[bool] = False  # it runs the torch module that a file of ours names, not the file's graph

    def variable(self) -> str:
        """The environment variable that names an interpreter with another environment for this runtime."""
        return f"SPARSIFY_{type(self).__module__.rpartition('.')[2].upper()}_PYTHON"

    def python(self) -> str:
        """The interpreter that it runs in: this one, or that of an environment of its own."""
        return os.environ.get(self.variable()) or sys.executable

    @final
    def missing(self) -> str | None:
        """Why it cannot run here, or None. What another environment lacks shows when the runtime is started in it."""
        if self.python() != sys.executable:
            return (
                None if Path(self.python()).is_file() else f"{self.variable()} names {self.python()}, which is no file"
            )
        return (no_device() if self.on_cuda else None) or self.lacks()

    def lacks(self) -> str | None:
        """What this environment lacks for it besides a device, or None."""
        if importlib.util.find_spec(self.package.replace("-", "_")) is None:
            return "its package is not installed, neither here nor where SPARSIFY_<RUNTIME>_PYTHON points"
        return None

    def prepared(self, path: Path, folder: Path) -> Path:
        """The model in the form that it takes: the file as it is, or another one, written into `folder`."""
        return path

    def refuses(self, path: Path) -> str | None:
        """Why it cannot run this file, or None."""
        if not self.runs_module:
            return None
        from sparsify.runtimes._torch import refuses_foreign

        return refuses_foreign(path)

    def version(self) -> str:
        return f"{self.package} {metadata.version(self.package)}"

    def layers(self, path: Path, threads: int, inputs: np.ndarray) -> list[LayerTime]:
        """What each step of a run takes, in the order of their running; empty where the runtime does not tell."""
        return []

    @abstractmethod
    def load(self, path: Path, threads: int) -> Run:
        """Prepare the model in the ONNX file `path` for `threads` CPU threads."""


def no_device() -> str | None:
    """Why there is no GPU to use, or None."""
    if importlib.util.find_spec("torch") is None:
        return "the package torch is not installed, which looks for CUDA devices"
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def load_runtime(name: str) -> Runtime:
    """The named runtime. Raises UnknownNameError."""
    return load_class("runtimes", name, Runtime)()  # type: ignore[type-abstract]
