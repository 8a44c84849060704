"""Our own sparse engine on the CPU."""

import statistics
from pathlib import Path
from typing import final

import numpy as np

from sparsify import __version__
from sparsify.engine import InferenceSession
from sparsify.runtimes import PROFILED_RUNS, LayerTime, Run, Runtime


@final
class SparsifyCpu(Runtime):
    """Machine code generated for the model's own non-zeros; zeros cost nothing."""

    package = "sparsify-rigl"

    def lacks(self) -> str | None:
        return None

    def version(self) -> str:
        return f"{self.package} {__version__}"

    def load(self, path: Path, threads: int) -> Run:
        session = InferenceSession(path, threads=threads)
        name = session.get_inputs()[0].name

        def run(inputs: np.ndarray) -> np.ndarray:
            return session.run(None, {name: inputs})[0]

        return run

    def layers(self, path: Path, threads: int, inputs: np.ndarray) -> list[LayerTime]:
        session = InferenceSession(path, threads=threads)
        name = session.get_inputs()[0].name
        runs = []
        for _ in range(PROFILED_RUNS):
            session.run(None, {name: inputs})
            runs.append(session.explain().rows)
        return [
            LayerTime(
                row.name,
                f"{row.operation} {row.kernel}" if row.kernel != row.operation else row.kernel,
                1e3 * statistics.median(run[i].measured for run in runs),
                row.density if row.gflop else None,
            )
            for i, row in enumerate(runs[0])
        ]
