"""onnxruntime on a CUDA GPU."""

from pathlib import Path
from typing import final

from sparsify.runtimes import REDUCED, Run, Runtime
from sparsify.runtimes._providers import lacks, session_run


@final
class OnnxRuntimeCuda(Runtime):
    """Its CUDA provider, as by default: products in TF32."""

    package = "onnxruntime"
    tolerance = REDUCED

    def missing(self) -> str | None:
        return lacks("CUDAExecutionProvider")

    def load(self, path: Path, threads: int) -> Run:
        return session_run(path, "CUDAExecutionProvider")
