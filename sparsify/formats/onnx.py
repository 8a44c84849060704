"""ONNX: opset 20, dynamic batch, weights masked and otherwise as trained, our metadata in the model.

Weights are dense, packed, or sparse tensors (docs/format.md, section 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsify.errors import FormatError
from sparsify.files import require_space, staging
from sparsify.formats import Compacted, SparseModel, Written, check_against_metadata, densified
from sparsify.formats._bits import StoredTensor, of_array
from sparsify.formats._header import TensorFile
from sparsify.formats._metadata import KEY, Metadata, Network, parse_metadata
from sparsify.formats._onnx_constants import decoded
from sparsify.formats._onnx_encode import encode_weights, rounded
from sparsify.formats._onnx_file import OnnxModel, array_of, damaged, of_proto, open_model, size_on_disk
from sparsify.formats._onnx_graph import find_layers
from sparsify.formats._onnx_proof import check_error, check_folded, compare, run
from sparsify.formats._onnx_save import save
from sparsify.formats._parallel import in_order
from sparsify.formats._prune import check_sparsity
from sparsify.formats._prune import prune as prune_weight
from sparsify.formats._values import stored_model, value_type
from sparsify.formats._writer import Watch, unwatched
from sparsify.topology.costs import Layer
from sparsify.topology.digest import MaskHasher

SUFFIX = ".onnx"


def write(
    model: SparseModel, path: Path, *, encoding: str = "dense", values: str | None = None, compact: bool = False
) -> Written:
    """Export through torch, then prove the file: read it, recount its masks, run it against torch.

    encoding: dense, packed or sparse-tensor. values: float32, float16 or bfloat16 for the stored weights; they
    are float32 again when the graph runs. compact: cut dead channels away. The network must be one of ours
    (`model.metadata` says which). Raises FormatError where the file's outputs differ from torch's or its weights
    are not folded at load, DiskError where it cannot be written; `path` is then left as it was.
    """
    from sparsify.formats._onnx_export import error_against

    tensors, record = stored_model(model, values)
    arrays = {n: tensors[n].array().astype(t.dtype, copy=False) for n, t in model.tensors.items()}
    model = dataclasses.replace(model, tensors=arrays, metadata=record)
    traced = trace(model, compact=compact)
    require_space(path, traced.graph.nbytes())
    encoded, names = encode_weights(traced.graph, encoding, value_type(values) if values else None, path)
    with staging(path) as partial:
        save(encoded, partial)
        error = error_against(traced.module, traced.samples, partial)
        check_error(error, path, "torch's")
        folded = check_folded(partial, names)
        digest = read(partial).digest()
    return Written(path, size_on_disk(path), digest, error, _dense_size(traced.graph), folded, traced.compacted)


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A network of ours as a graph, and what it is held against."""

    graph: OnnxModel
    record: Metadata
    module: Any  # torch.nn.Module
    samples: list[Any]  # torch.Tensor [n, *input shape] each, of several sizes
    compacted: Compacted | None


def trace(model: SparseModel, *, compact: bool) -> Traced:
    """The graph of a network, by torch's exporter, with our metadata; on request without its dead channels."""
    import torch

    from sparsify.formats._module import build_module
    from sparsify.formats._onnx_export import export_module

    module, record = build_module(model), model.metadata
    assert record is not None
    sample = torch.from_numpy(record.network.sample(3))
    others = [sample[:1]] + ([sample[:, : max(1, sample.shape[1] // 2)]] if record.network.vocabulary else [])
    proto = export_module(module, sample[:2])
    proto.producer_name, proto.producer_version = "sparsify", record.producer.split()[-1]
    graph, compacted = of_proto(proto), None
    if compact:
        graph, compacted, record = _compacted(graph, record)
        assert record is not None
    onnx.helper.set_model_props(graph.proto, {KEY: record.model_dump_json()})
    return Traced(graph, record, module, [sample, *others], compacted)


def _compacted(graph: OnnxModel, record: Metadata | None) -> tuple[OnnxModel, Compacted, Metadata | None]:
    from sparsify.formats._onnx_compact import compact, recorded

    graph, compacted, cuts = compact(graph)
    return graph, compacted, record and recorded(record, graph, cuts)


def read(path: Path) -> SparseModel:
    """Read a model of ours or of anybody's, however its weights are encoded. Raises FormatError where it is damaged."""
    model = _open(path)
    record = _record(model, path)
    tensors = {name: _array(tensor, name, path) for name, tensor in model.tensors.items()}
    if record is None:
        layers = find_layers(model)
        return SparseModel({layer.name: _oriented(tensors[layer.name], layer) for layer in layers}, layers, None)
    layers = [layer.layer(name) for name, layer in record.layers.items()]
    return check_against_metadata(SparseModel(tensors, layers, record), path)


def read_tensors(path: Path) -> TensorFile:
    """Every initializer of a model, weights decoded, as its operators want them; none is read yet.

    Raises FormatError for a damaged file and for tensors that safetensors cannot hold.
    """
    model = _open(path)
    for tensor in model.proto.graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise FormatError(f"{tensor.name} is of type {kind}, which safetensors cannot hold. Convert it first.")
    metadata = {entry.key: entry.value for entry in model.proto.metadata_props if entry.key == KEY}
    return TensorFile(model.tensors, {"format": "pt", **metadata})


def converts(source: Path) -> bool:
    """Whether `convert` can read this file."""
    return source.suffix == SUFFIX


def convert(
    source: Path,
    path: Path,
    *,
    encoding: str = "dense",
    values: str | None = None,
    prune: float | None = None,
    compact: bool = False,
    watch: Watch | None = None,
) -> Written:
    """Write an ONNX model, whoever made it, with its weights in another encoding, and prove it.

    prune: sparsity to which the weights of Conv, Gemm and MatMul are magnitude-pruned first; other options as in
    `write`. Weights are read and written one at a time; onnxruntime, in which outputs are compared with the
    source's, pruned and rounded likewise, needs room for all. Raises FormatError as `write` does, and for models
    that sparsify trained if their record would no longer be true.
    """
    model = decoded(open_model(source), size_on_disk(source), source, casts=False)
    record = _record(model, source)
    if record is not None and values is not None:
        return write(read(source), path, encoding=encoding, values=values, compact=compact)
    if record is not None and prune is not None:
        raise FormatError(
            f"{source} was trained by sparsify, and its record would no longer be true of a pruned model. Train at the "
            f"sparsity that you need, or leave --prune away."
        )
    changed = _changed(model, prune, values)
    final, compacted = changed, None
    if compact:
        final, compacted, record = _compacted(changed, record)
        if record is not None:
            onnx.helper.set_model_props(final.proto, {KEY: record.model_dump_json()})
    dense_size = _dense_size(final)
    require_space(path, dense_size * (1 if changed is model else 2))  # the reference is on disk for a while, too
    with staging(path) as partial:
        reference = _reference(source if changed is model else None, changed, partial.with_name("reference.onnx"))
        stored = value_type(values) if values else None
        digest = _digest(decoded(final, final.nbytes(), source, casts=True), source) if compact else reference.digest
        encoded, names = encode_weights(final, encoding, stored, source)
        save(encoded, partial, watch=_counted(watch or unwatched, encoded))
        error, folded = None, None
        if reference.outputs is not None:
            error = compare(reference.outputs, run(partial, reference.inputs)[0])
            check_error(error, path, "the source's")
            folded = check_folded(partial, names)
        if _digest(_open(partial), partial) != digest:
            raise FormatError(f"The masks recounted from {path} are not the source's. This is a bug: please report it.")
    return Written(path, size_on_disk(path), digest, error, dense_size, folded, compacted)


def write_twin(source: Path, read: SparseModel, path: Path) -> OnnxModel:
    """Write the dense twin of an ONNX model, whoever made it, for comparisons, and return it.

    read: what `read` gives of the same file.
    """
    model = _open(source)
    twin = densified(read)
    for layer in twin.layers:
        weight = twin.tensors[layer.name]
        stored = model.tensors[layer.name]
        oriented = weight if weight.shape == stored.shape else weight.T
        model = model.with_tensors({layer.name: of_array(oriented, layer.name)})
    save(model, path)
    return model


def write_like(exported: Path, model: SparseModel, path: Path) -> bool:
    """Write a model with the graph of a dense export of the same network, so that torch need not trace it again.

    For benchmarks, which compare outputs themselves; masks are recounted. Whether it could: the network must be the
    same, and the graph hold all weights as they are, none computed into another constant.
    """
    graph = open_model(exported).copy()
    own, record = _record(graph, exported), model.metadata
    if own is None or record is None or _architecture(own.network) != _architecture(record.network):
        return False
    floats = {name: tensor for name, tensor in graph.tensors.items() if tensor.dtype == "F32"}
    if any(name not in model.tensors or tensor.shape != model.tensors[name].shape for name, tensor in floats.items()):
        return False
    if not record.layers.keys() <= floats.keys():
        return False
    onnx.helper.set_model_props(graph.proto, {KEY: record.model_dump_json()})
    with staging(path) as partial:
        save(graph.with_tensors({name: of_array(model.tensors[name], name) for name in floats}), partial)
        read(partial)  # raises where the record is not true of the file
    return True


def _architecture(network: Network) -> dict[str, Any]:
    """What decides on the graph, but for widths, which the shapes of weights tell."""
    return {**network.model_dump(exclude={"recipe"}), "model": network.recipe["model"]}


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
    """What the source does."""

    digest: str
    inputs: dict[str, np.ndarray] | None
    outputs: list[np.ndarray] | None  # None where onnxruntime cannot run it on random inputs


def _reference(source: Path | None, model: OnnxModel, path: Path) -> _Reference:
    """Run the source or, where that is None, the model that was made of it, written to `path` for as long."""
    digest = _digest(decoded(model, model.nbytes(), source or path, casts=True), source or path)
    try:
        if source is None:
            save(model, path)
        try:
            outputs, inputs = run(source or path)
        except Exception:  # other programs' operators, or sizes that do not fit: onnxruntime raises many kinds
            return _Reference(digest, None, None)
        return _Reference(digest, inputs, outputs)
    finally:
        for written in path.parent.glob(f"{path.name}*"):
            written.unlink()


def _changed(model: OnnxModel, prune: float | None, values: str | None) -> OnnxModel:
    """The model pruned and rounded, or the same object where neither is asked for."""
    if prune is not None:
        check_sparsity(prune)
        weights = [layer.name for layer in find_layers(model) if layer.sparse]
        model = model.with_tensors({name: prune_weight(model.tensors[name], prune) for name in weights})
    return model if values is None else rounded(model, value_type(values))


def _open(path: Path) -> OnnxModel:
    return decoded(open_model(path), size_on_disk(path), path, casts=True)


def _record(model: OnnxModel, path: Path) -> Metadata | None:
    texts = [entry.value for entry in model.proto.metadata_props if entry.key == KEY]
    return parse_metadata(texts[-1], path) if texts else None


def _digest(model: OnnxModel, path: Path) -> str:
    """The mask digest recounted weight by weight. Raises FormatError where a record says something else."""
    record = _record(model, path)
    if record is not None:
        tensors = {name: _array(model.tensors[name], name, path) for name in record.layers if name in model.tensors}
        layers = [layer.layer(name) for name, layer in record.layers.items()]
        return check_against_metadata(SparseModel(tensors, layers, record), path).digest()
    layers = sorted((layer for layer in find_layers(model) if layer.sparse), key=lambda layer: layer.name)

    def mask(layer: Layer) -> np.ndarray:
        weight = _oriented(_array(model.tensors[layer.name], layer.name, path), layer)
        return np.packbits((weight != 0).reshape(-1), bitorder="little")

    hasher = MaskHasher()
    masks = in_order(mask, layers, lambda layer: 2 * model.tensors[layer.name].nbytes)
    for layer, bits in zip(layers, masks, strict=True):
        hasher.add(layer.name, layer.shape, bits)
    return hasher.hexdigest()


def _array(tensor: StoredTensor, name: str, path: Path) -> np.ndarray:
    try:
        return array_of(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, f"the tensor {name} cannot be decoded: {error}") from None


def _oriented(tensor: np.ndarray, layer: Layer) -> np.ndarray:
    """The weight as [out, in, ...], whichever way its operator wants it."""
    return tensor if tensor.shape == layer.shape else np.ascontiguousarray(tensor.T)


def _dense_size(model: OnnxModel) -> int:
    return sum(tensor.nbytes for tensor in model.tensors.values())


def _counted(watch: Watch, model: OnnxModel) -> Callable[[int], object]:
    """Bytes written so far, and all."""
    total, done = _dense_size(model), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        watch(done, total)

    return count
