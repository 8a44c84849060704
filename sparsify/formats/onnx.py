"""ONNX: opset 20, dynamic batch, weights masked and otherwise as trained, our metadata in the model.

The exporter's optimizer would fold batch norms into weights. That is left to the runtimes, all of which do
it at load, so that the file holds the trained weights bit for bit.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from sparsify.errors import FormatError
from sparsify.files import replacing
from sparsify.formats import SparseModel, Written, check_against_metadata
from sparsify.formats._metadata import KEY, parse_metadata
from sparsify.formats._onnx_graph import find_layers
from sparsify.topology.costs import Layer

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = ".onnx"
OPSET = 20
TOLERANCE = 1e-4  # relative error of float32 outputs between runtimes that add in another order


def write(model: SparseModel, path: Path) -> Written:
    """Export through torch, then prove the file: read it, recount its masks, run it against torch.

    The network must be one of ours (`model.metadata` says which). Raises FormatError where the file's
    outputs differ from torch's, DiskError where it cannot be written; `path` is then left as it was.
    """
    import torch

    from sparsify.formats._module import build_module

    module = build_module(model)
    assert model.metadata is not None
    sample = torch.randn(3, *model.metadata.network.input_shape, generator=torch.Generator().manual_seed(0))
    proto = _export(module, sample[:2])
    onnx.helper.set_model_props(proto, {KEY: model.metadata.model_dump_json()})
    proto.producer_name, proto.producer_version = "sparsify", model.metadata.producer.split()[-1]
    with replacing(path) as partial:
        partial.write_bytes(proto.SerializeToString(deterministic=True))
        error = _error_against(module, sample, partial)
        if not error < TOLERANCE:
            raise FormatError(
                f"The exported model's outputs differ from torch's by {error:.1e} (relative), more than "
                f"{TOLERANCE:.0e} allows. Nothing was written. This is a bug of the exporter or of "
                f"onnxruntime: please report it with the recipe."
            )
        digest = read(partial).digest()
    return Written(path, path.stat().st_size, digest, error)


def read(path: Path) -> SparseModel:
    """Read a model of ours or of anybody's. Raises FormatError where it is damaged."""
    proto = load(path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    tensors = {i.name: _to_numpy(i, path) for i in proto.graph.initializer}
    if KEY not in properties:
        layers = find_layers(proto)
        return SparseModel({layer.name: _oriented(tensors[layer.name], layer) for layer in layers}, layers, None)
    record = parse_metadata(properties[KEY], path)
    layers = [Layer(n, tuple(e.shape), e.positions, e.sparse) for n, e in record.layers.items()]
    return check_against_metadata(SparseModel(tensors, layers, record), path)


def load(path: Path) -> onnx.ModelProto:
    """The model in a file. Raises FormatError where there is none."""
    try:
        proto = onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise FormatError(_damaged(path, str(error).split("\n")[0])) from None
    if not proto.graph.node:
        raise FormatError(_damaged(path, "it holds no graph"))
    return proto


def _export(module: nn.Module, sample: Tensor) -> onnx.ModelProto:
    import onnx_ir.passes.common as passes
    import torch
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    with _quiet():
        program = torch.onnx.export(
            module,
            (sample,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        graph = program.model
        optimizer.fold_constants(graph)
        rewriter.rewrite(graph, [rules.materialize_reshape_shape_rule, rules.remove_optional_bias_from_conv_rule])
    for clean in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(),
        passes.ClearMetadataAndDocStringPass(),  # the exporter leaves stack traces with local paths
    ):
        clean(graph)
    proto: onnx.ModelProto = program.model_proto
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    return proto


def _error_against(module: nn.Module, sample: Tensor, path: Path) -> float:
    """Largest relative error of the file's outputs in onnxruntime against torch, at two batch sizes."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    errors = []
    for batch in (sample, sample[:1]):
        with torch.no_grad():
            expected = module(batch).numpy()
        found = session.run(None, {"input": batch.numpy()})[0]
        errors.append(float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) + 1e-12)))
    return max(errors)


def _to_numpy(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(_damaged(path, f"the tensor {tensor.name} cannot be decoded: {error}")) from None


def _oriented(tensor: np.ndarray, layer: Layer) -> np.ndarray:
    """The weight as [out, in, ...], whichever way its operator wants it."""
    return tensor if tensor.shape == layer.shape else np.ascontiguousarray(tensor.T)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns about packages that it does not need here and about its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _damaged(path: Path, found: str) -> str:
    return f"{path} is not a readable ONNX model ({found}). It was cut short or damaged. Copy or export it again."
