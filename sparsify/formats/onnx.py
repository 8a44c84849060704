"""ONNX: opset 20, dynamic batch, weights masked and otherwise as trained, our metadata in the model.

Weights are dense, packed, or sparse tensors (docs/format.md, section 2).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from sparsify.errors import FormatError
from sparsify.files import require_space, staging
from sparsify.formats import SparseModel, Written, check_against_metadata
from sparsify.formats._bits import of_array
from sparsify.formats._header import TensorFile
from sparsify.formats._metadata import KEY, parse_metadata
from sparsify.formats._onnx_constants import decoded
from sparsify.formats._onnx_encode import NAMES, encode_weights, replace_data, rounded
from sparsify.formats._onnx_file import damaged, load, save, size_on_disk
from sparsify.formats._onnx_graph import find_layers
from sparsify.formats._onnx_proof import check_error, check_folded, compare, run
from sparsify.formats._prune import check_sparsity
from sparsify.formats._prune import prune as prune_weight
from sparsify.formats._values import stored_model, value_type
from sparsify.topology.costs import Layer

SUFFIX = ".onnx"


def write(model: SparseModel, path: Path, *, encoding: str = "dense", values: str | None = None) -> Written:
    """Export through torch, then prove the file: read it, recount its masks, run it against torch.

    encoding: dense, packed or sparse-tensor. values: float32, float16 or bfloat16 for the stored weights; they
    are float32 again when the graph runs. The network must be one of ours (`model.metadata` says which).
    Raises FormatError where the file's outputs differ from torch's or its weights are not folded at load,
    DiskError where it cannot be written; `path` is then left as it was.
    """
    import torch

    from sparsify.formats._module import build_module
    from sparsify.formats._onnx_export import error_against, export_module

    tensors, record = stored_model(model, values)
    arrays = {n: tensors[n].array().astype(t.dtype, copy=False) for n, t in model.tensors.items()}
    model = dataclasses.replace(model, tensors=arrays, metadata=record)
    module = build_module(model)
    assert record is not None
    sample = torch.randn(3, *record.network.input_shape, generator=torch.Generator().manual_seed(0))
    proto = export_module(module, sample[:2])
    onnx.helper.set_model_props(proto, {KEY: record.model_dump_json()})
    proto.producer_name, proto.producer_version = "sparsify", record.producer.split()[-1]
    encoded = encode_weights(proto, encoding, value_type(values) if values else None, path)
    require_space(path, sum(tensor.ByteSize() for tensor in proto.graph.initializer))
    with staging(path) as partial:
        save(proto, partial)
        error = error_against(module, sample, partial)
        check_error(error, path, "torch's")
        folded = check_folded(partial, encoded)
        digest = read(partial).digest()
    return Written(path, size_on_disk(path), digest, error, _dense_size(arrays), folded)


def read(path: Path) -> SparseModel:
    """Read a model of ours or of anybody's, however its weights are encoded. Raises FormatError where it is damaged."""
    proto = decoded(load(path), size_on_disk(path), path, casts=True)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    tensors = {i.name: _to_numpy(i, path) for i in proto.graph.initializer}
    if KEY not in properties:
        layers = find_layers(proto)
        return SparseModel({layer.name: _oriented(tensors[layer.name], layer) for layer in layers}, layers, None)
    record = parse_metadata(properties[KEY], path)
    layers = [Layer(n, tuple(e.shape), e.positions, e.sparse) for n, e in record.layers.items()]
    return check_against_metadata(SparseModel(tensors, layers, record), path)


def read_tensors(path: Path) -> TensorFile:
    """Every initializer of a model, weights decoded, as its operators want them. Raises FormatError."""
    proto = decoded(load(path), size_on_disk(path), path, casts=True)
    metadata = {entry.key: entry.value for entry in proto.metadata_props if entry.key == KEY}
    arrays = {tensor.name: _to_numpy(tensor, path) for tensor in proto.graph.initializer}
    return TensorFile({name: of_array(array, name) for name, array in arrays.items()}, {"format": "pt", **metadata})


def converts(source: Path) -> bool:
    """Whether `convert` can read this file."""
    return source.suffix == SUFFIX


def convert(
    source: Path, path: Path, *, encoding: str = "dense", values: str | None = None, prune: float | None = None
) -> Written:
    """Write an ONNX model, whoever made it, with its weights in another encoding, and prove it.

    prune: sparsity to which the weights of Conv, Gemm and MatMul are magnitude-pruned first; other options as in
    `write`. Outputs are compared with the source's, pruned and rounded likewise, in onnxruntime. Raises FormatError
    as `write` does, and for models that sparsify trained if their record would no longer be true.
    """
    proto = decoded(load(source), size_on_disk(source), source, casts=False)
    recorded = any(entry.key == KEY for entry in proto.metadata_props)
    if recorded and values is not None:
        return write(read(source), path, encoding=encoding, values=values)
    if recorded and prune is not None:
        raise FormatError(
            f"{source} was trained by sparsify, and its record would no longer be true of a pruned model. Train at the "
            f"sparsity that you need, or leave --prune away."
        )
    if prune is not None:
        check_sparsity(prune)
        _prune(proto, prune)
    if values is not None:
        rounded(proto, value_type(values))
    dense_size = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    require_space(path, 2 * dense_size)  # the reference is on disk for a while, too
    with staging(path) as partial:
        reference = _reference(proto, partial.with_name("reference.onnx"))
        encoded = encode_weights(proto, encoding, value_type(values) if values else None, source)
        save(proto, partial)
        error, folded = None, None
        if reference.outputs is not None:
            error = compare(reference.outputs, run(partial, reference.inputs)[0])
            check_error(error, path, "the source's")
            folded = check_folded(partial, encoded)
        if read(partial).digest() != reference.digest:
            raise FormatError(f"The masks recounted from {path} are not the source's. This is a bug: please report it.")
    return Written(path, size_on_disk(path), reference.digest, error, dense_size, folded)


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
    """What the source does."""

    digest: str
    inputs: dict[str, np.ndarray] | None
    outputs: list[np.ndarray] | None  # None where onnxruntime cannot run it on random inputs


def _reference(proto: onnx.ModelProto, path: Path) -> _Reference:
    """Run the source, which is on disk for as long as that takes."""
    save(proto, path)
    try:
        digest = read(path).digest()
        try:
            outputs, inputs = run(path)
        except Exception:  # other programs' operators, or sizes that do not fit: onnxruntime raises many kinds
            return _Reference(digest, None, None)
        return _Reference(digest, inputs, outputs)
    finally:
        for written in path.parent.glob(f"{path.name}*"):
            written.unlink()


def _prune(proto: onnx.ModelProto, sparsity: float) -> None:
    weights = {layer.name for layer in find_layers(proto) if layer.sparse}
    for tensor in proto.graph.initializer:
        if tensor.name in weights and tensor.data_type in NAMES:
            stored = of_array(numpy_helper.to_array(tensor), tensor.name)
            replace_data(tensor, prune_weight(stored, sparsity).bits())


def _to_numpy(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"the tensor {tensor.name} cannot be decoded: {error}") from None


def _oriented(tensor: np.ndarray, layer: Layer) -> np.ndarray:
    """The weight as [out, in, ...], whichever way its operator wants it."""
    return tensor if tensor.shape == layer.shape else np.ascontiguousarray(tensor.T)


def _dense_size(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
