"""Sessions of onnxruntime, on whatever provider."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.runtimes import Run


def lacks_provider(provider: str) -> str | None:
    """Why the installed onnxruntime cannot use the provider, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        return None
    return f"the installed onnxruntime has no {provider}: pip install onnxruntime-gpu"


def session_on(path: Path, provider: str, threads: int, profile: Path | None = None) -> Any:
    """A session of that provider; operators that it lacks run on the CPU, as by default.

    profile: how the file begins, into which `end_profiling` writes the times of kernels.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def session_run(session: Any) -> Run:
    """From array to array."""
    name = session.get_inputs()[0].name

    def run(inputs: np.ndarray) -> np.ndarray:
        output: np.ndarray = session.run(None, {name: inputs})[0]
        return output

    return run
