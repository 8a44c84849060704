"""Our own sparse engine on the CPU."""

from pathlib import Path
from typing import final

import numpy as np

from sparsify.engine import InferenceSession
from sparsify.runtimes import Run, Runtime


@final
class SparsifyCpu(Runtime):
    """Machine code generated for the model's own non-zeros; zeros cost nothing."""

    package = "sparsify-rigl"

    def missing(self) -> str | None:
        return None

    def load(self, path: Path, threads: int) -> Run:
        session = InferenceSession(path, threads=threads)
        name = session.get_inputs()[0].name

        def run(inputs: np.ndarray) -> np.ndarray:
            return session.run(None, {name: inputs})[0]

        return run
