"""onnxruntime on the CPU."""

from pathlib import Path
from typing import final

import numpy as np

from sparsify.runtimes import Run, Runtime


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
