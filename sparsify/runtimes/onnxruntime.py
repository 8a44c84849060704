"""onnxruntime on the CPU."""

import json
import statistics
import tempfile
from pathlib import Path
from typing import final

import numpy as np

from sparsify.runtimes import PROFILED_RUNS, LayerTime, Run, Runtime
from sparsify.runtimes._providers import session_on, session_run

PROVIDER = "CPUExecutionProvider"


@final
class OnnxRuntime(Runtime):
    """All of its optimizations, as by default. It knows no sparsity: zeros are multiplied."""

    package = "onnxruntime"

    def load(self, path: Path, threads: int) -> Run:
        return session_run(session_on(path, PROVIDER, threads))

    def layers(self, path: Path, threads: int, inputs: np.ndarray) -> list[LayerTime]:
        """The kernels' times of onnxruntime's own profiler, after its fusions."""
        with tempfile.TemporaryDirectory(prefix="sparsify-profile-") as folder:
            session = session_on(path, PROVIDER, threads, profile=Path(folder) / "profile")
            run = session_run(session)
            for _ in range(PROFILED_RUNS):
                run(inputs)
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[str, list[float]] = {}
        operations = {}
        for event in sorted((e for e in events if e["name"].endswith("_kernel_time")), key=lambda e: e["ts"]):
            name = event["name"].removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"] / 1e3)  # microseconds
            operations[name] = event["args"]["op_name"]
        return [LayerTime(name, operations[name], statistics.median(ms)) for name, ms in times.items()]
