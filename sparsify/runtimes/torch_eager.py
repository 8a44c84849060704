"""PyTorch, eager, on the CPU."""

from pathlib import Path
from typing import final

import numpy as np

from sparsify.formats import onnx
from sparsify.formats._module import build_module
from sparsify.recipe import parse_recipe
from sparsify.references import is_reference
from sparsify.runtimes import Run, Runtime


@final
class TorchEager(Runtime):
    """The network as a torch module in inference mode. It knows no sparsity: zeros are multiplied."""

    package = "torch"

    def refuses(self, path: Path) -> str | None:
        record = onnx.read(path).metadata
        if record is None:
            return "the file was not written by sparsify, so the torch module is not known"
        if is_reference(parse_recipe(record.network.recipe).model.name):
            return "the network is code of somebody's own, which is not imported because a file names it"
        if record.uncut_shapes:
            return "channels were cut away from it, so it is no longer the recipe's torch module"
        return None

    def load(self, path: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        module = build_module(onnx.read(path))

        def run(inputs: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                output: np.ndarray = module(torch.from_numpy(inputs)).numpy()
                return output

        return run
