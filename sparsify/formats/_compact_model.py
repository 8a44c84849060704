"""A network of ours without its dead channels, as tensors. torch is imported when a function is called, not before."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sparsify.formats import Compacted, SparseModel


def compact_model(model: SparseModel) -> tuple[SparseModel, float, Compacted]:
    """The model compacted by way of its ONNX graph, its relative error against torch, and what was cut.

    Names stay as they are; a bias that takes up constants is called like its weight. Raises FormatError where
    the file does not say which network it holds, and where outputs differ.
    """
    from sparsify.formats import onnx
    from sparsify.formats._onnx_export import error_against
    from sparsify.formats._onnx_file import array_of
    from sparsify.formats._onnx_proof import check_error
    from sparsify.formats._onnx_save import save

    traced = onnx.trace(model, compact=True)
    assert traced.compacted is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(traced.graph, path)
        error = error_against(traced.module, traced.samples, path)
        check_error(error, path, "torch's")
    prefixes = tuple(name.rpartition(".")[0] + "." for name in model.tensors)
    tensors = {name: array_of(t) for name, t in traced.graph.tensors.items() if name.startswith(prefixes)}
    layers = [layer.layer(name) for name, layer in traced.record.layers.items()]
    return SparseModel(tensors, layers, traced.record), error, traced.compacted
