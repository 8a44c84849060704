"""DeepSparse on the CPU: the sparse engine that was ended in 2025; its last release is 1.8."""

from pathlib import Path
from typing import Any, final

import numpy as np

from sparsify.runtimes import Run, Runtime

OPSET, IR_VERSION = 17, 9  # the newest that it reads; and weights as plain initializers


@final
class DeepSparse(Runtime):
    """Compiled for the batch of the input. Needs numpy 1 and an old onnx, so an environment of its own."""

    package = "deepsparse"

    def prepared(self, path: Path, folder: Path) -> Path:
        from sparsify.formats._onnx_older import write_older

        return write_older(path, folder / path.name, OPSET, IR_VERSION)

    def load(self, path: Path, threads: int) -> Run:
        import deepsparse

        engines: dict[int, Any] = {}

        def run(inputs: np.ndarray) -> np.ndarray:
            if len(inputs) not in engines:
                engines[len(inputs)] = deepsparse.compile_model(str(path), batch_size=len(inputs), num_cores=threads)
            output: np.ndarray = engines[len(inputs)].run([inputs])[0]
            return output

        return run
