"""TensorRT on a CUDA GPU, through onnxruntime."""

from pathlib import Path
from typing import final

from sparsify.runtimes import REDUCED, Run, Runtime
from sparsify.runtimes._providers import lacks, session_run


@final
class OnnxRuntimeTensorrt(Runtime):
    """Its TensorRT provider, as by default."""

    package = "onnxruntime"
    tolerance = REDUCED

    def missing(self) -> str | None:
        return lacks("TensorrtExecutionProvider")

    def load(self, path: Path, threads: int) -> Run:
        return session_run(path, "TensorrtExecutionProvider")
