"""LiteRT on the CPU, once called TensorFlow Lite; its kernels are XNNPACK's."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any, final

import numpy as np

from sparsify.runtimes import Run, Runtime


@final
class LiteRt(Runtime):
    """Converted by litert-torch for the shape of the input. Weights that are stored dense are multiplied, zeros too."""

    package = "ai-edge-litert"
    runs_module = True

    def lacks(self) -> str | None:
        converter = importlib.util.find_spec("litert_torch")
        return super().lacks() or (None if converter else "litert-torch is not installed, which converts models")

    def load(self, path: Path, threads: int) -> Run:
        from sparsify.runtimes._torch import module_on_cpu

        module = module_on_cpu(path, threads)
        interpreters: dict[tuple[int, ...], Any] = {}

        def run(inputs: np.ndarray) -> np.ndarray:
            if inputs.shape not in interpreters:
                interpreters[inputs.shape] = _interpreter(module, inputs, threads)
            interpreter = interpreters[inputs.shape]
            taken = interpreter.get_input_details()[0]
            interpreter.set_tensor(taken["index"], inputs.astype(taken["dtype"], copy=False))  # its indices are int32
            interpreter.invoke()
            output: np.ndarray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            return output

        return run


def _interpreter(module: Any, inputs: np.ndarray, threads: int) -> Any:
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter

    converted = litert_torch.convert(module, (torch.from_numpy(inputs),))
    with tempfile.TemporaryDirectory(prefix="sparsify-litert-") as folder:
        converted.export(str(Path(folder) / "model.tflite"))
        interpreter = Interpreter(model_path=str(Path(folder) / "model.tflite"), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter
