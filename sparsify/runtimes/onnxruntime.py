"""onnxruntime on the CPU."""

import json
import statistics
import tempfile
from pathlib import Path
from typing import final

import numpy as np

from sparsify.runtimes import PROFILED_RUNS, LayerTime, Run, Runtime


@final
class OnnxRuntime(Runtime):
    """All of its optimizations, as by default. It knows no sparsity: zeros are multiplied."""

    package = "onnxruntime"

    def load(self, path: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(inputs: np.ndarray) -> np.ndarray:
            output: np.ndarray = session.run(None, {name: inputs})[0]
            return output

        return run

    def layers(self, path: Path, threads: int, inputs: np.ndarray) -> list[LayerTime]:
        """The kernels' times of onnxruntime's own profiler, after its fusions."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="sparsify-profile-") as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(PROFILED_RUNS):
                session.run(None, {session.get_inputs()[0].name: inputs})
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[str, list[float]] = {}
        operations = {}
        for event in sorted((e for e in events if e["name"].endswith("_kernel_time")), key=lambda e: e["ts"]):
            name = event["name"].removesuffix("_kernel_time")
            times.setdefault(name, []).append(event["dur"] / 1e3)  # microseconds
            operations[name] = event["args"]["op_name"]
        return [LayerTime(name, operations[name], statistics.median(ms)) for name, ms in times.items()]
