"""TensorRT on a CUDA GPU, through onnxruntime."""

from pathlib import Path
from typing import final

from sparsify.runtimes import REDUCED, Run, Runtime
from sparsify.runtimes._providers import lacks_provider, session_on, session_run

PROVIDER = "TensorrtExecutionProvider"


@final
class OnnxRuntimeTensorrt(Runtime):
    """Its TensorRT provider, as by default."""

    package = "onnxruntime"
    on_cuda = True
    tolerance = REDUCED

    def lacks(self) -> str | None:
        return lacks_provider(PROVIDER)

    def load(self, path: Path, threads: int) -> Run:
        return session_run(session_on(path, PROVIDER, threads))
