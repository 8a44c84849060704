"""OpenVINO on the CPU."""

from pathlib import Path
from typing import Any, final

import numpy as np

from sparsify.runtimes import Run, Runtime


@final
class OpenVino(Runtime):
    """Compiled for latency and for the shape of the input, in float32. It knows no sparsity: zeros are multiplied."""

    package = "openvino"

    def load(self, path: Path, threads: int) -> Run:
        import openvino

        # Without the hint it computes in bfloat16 where the CPU can.
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        model = core.read_model(str(path))
        requests: dict[tuple[int, ...], Any] = {}

        def run(inputs: np.ndarray) -> np.ndarray:
            if inputs.shape not in requests:
                model.reshape(list(inputs.shape))
                requests[inputs.shape] = core.compile_model(model, "CPU", settings).create_infer_request()
            output: np.ndarray = requests[inputs.shape].infer([inputs])[0]
            return output

        return run
