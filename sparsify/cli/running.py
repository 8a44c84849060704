"""`sparsify run`: a model and an input, through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsify.engine import InferenceSession
from sparsify.errors import EngineError
from sparsify.files import write_with

SHOWN = 10  # values of each output that are printed


def run_model(model: Path, source: Path, out: Path | None, threads: int | None) -> dict[str, Any]:
    """Run an ONNX model with one input on a NumPy file; the first output goes to `out`.

    Returns name, shape and first values of each output. Raises EngineError where file, shape or type do not fit.
    """
    try:
        array = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EngineError(f"{source} is not a readable NumPy file ({error}). Save one with numpy.save.") from None
    if not isinstance(array, np.ndarray):
        raise EngineError(f"{source} holds several arrays. Save the one input by itself with numpy.save.")
    session = InferenceSession(model, threads=threads)
    names = [each.name for each in session.get_inputs()]
    if len(names) != 1:
        raise EngineError(f"{model} has {len(names)} inputs ({', '.join(names)}); this command gives it one.")
    outputs = session.run(None, {names[0]: array})
    if out is not None:
        write_with(out, lambda file: np.save(file, outputs[0]))
    described = {
        port.name: {"shape": list(output.shape), "first": output.ravel()[:SHOWN].tolist()}
        for port, output in zip(session.get_outputs(), outputs, strict=True)
    }
    return {"outputs": described}
