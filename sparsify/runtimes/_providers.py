"""onnxruntime with an execution provider other than the CPU's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from sparsify.runtimes import Run


def lacks(provider: str) -> str | None:
    """Why the provider cannot be used, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime has no {provider}: pip install onnxruntime-gpu"
    import torch

    return None if torch.cuda.is_available() else "there is no CUDA device"


def session_run(path: Path, provider: str) -> Run:
    """A session of that provider; operators that it lacks run on the CPU, as by default."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=[provider, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(inputs: np.ndarray) -> np.ndarray:
        output: np.ndarray = session.run(None, {name: inputs})[0]
        return output

    return run
