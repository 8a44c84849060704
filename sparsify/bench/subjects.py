"""What is timed: a source as an ONNX file, and its dense twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from sparsify.errors import BenchError
from sparsify.formats import SparseModel, densified
from sparsify.formats import onnx as onnx_format
from sparsify.formats._onnx_file import OnnxModel, size_on_disk
from sparsify.sources import open_source

SETTLING = 4  # samples


@dataclass(frozen=True)
class Subject:
    """A source with its two ONNX files."""

    source: str
    sparsity: float
    digest: str  # of the masks
    sparse: Path
    dense: Path
    sample: Callable[[int, int], np.ndarray]  # (batch, seed) -> random inputs [batch, ...]

    @property
    def file_bytes(self) -> int:
        return size_on_disk(self.sparse)


def prepare(source: str, folder: Path, changes: Sequence[str] = (), before: Subject | None = None) -> Subject:
    """Write the source, unless it is an ONNX file already, and its dense twin into a new folder.

    changes: "section.key=value" each, for recipes. before: the same source with other changes, whose graph is used
    again where the network is the same, and whose dense twin is. Raises SparsifyError where it cannot be timed.
    """
    folder.mkdir(parents=True)
    sparse, dense = folder / "sparse.onnx", folder / "dense.onnx"
    model = open_source(source, changes)
    own_file = Path(source).suffix == onnx_format.SUFFIX
    if model.metadata is not None and model.metadata.origin == "initialised" and not own_file:
        model = settled(model, model.metadata.network.sample(SETTLING, seed=0))
    if model.metadata is not None and not (own_file and model.metadata.uncut_shapes):
        if own_file:
            sparse = Path(source)
        elif before is None or not onnx_format.write_like(before.sparse, model, sparse):
            onnx_format.write(model, sparse)
        if before is not None:
            dense = before.dense
        elif not onnx_format.write_like(sparse, densified(model), dense):
            onnx_format.write(densified(model), dense)
        network = model.metadata.network
        digest = model.metadata.mask_digest

        def sample(batch: int, seed: int) -> np.ndarray:
            return network.sample(batch, seed=seed)

        return Subject(source, model.metadata.sparsity, digest, sparse, dense, sample)
    graph = onnx_format.write_twin(Path(source), model, dense)
    shape = _foreign_input(graph, source)

    def normal(batch: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((batch, *shape), dtype=np.float32)

    return Subject(source, _sparsity(model), model.digest(), Path(source), dense, normal)


def settled(model: SparseModel, inputs: np.ndarray) -> SparseModel:
    """A freshly initialised network with its batch norms' statistics taken from a batch [n, ...].

    As initialised they pass on what they get, and without training the activations of a deep sparse network vanish on
    their way: its outputs would be the last bias, whatever a runtime computes before that.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from sparsify.formats._module import build_module

    module = build_module(model)
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)}
    for norm in norms.values():
        norm.momentum = 1.0  # this batch alone
        norm.train()
    with torch.no_grad():
        module(torch.from_numpy(inputs))
    found = {f"{name}.{key}": value.numpy() for name, norm in norms.items() for key, value in norm.named_buffers()}
    statistics = {name: value for name, value in found.items() if name in model.tensors}
    return replace(model, tensors=model.tensors | statistics)


def _foreign_input(graph: OnnxModel, source: str) -> tuple[int, ...]:
    inputs = [value for value in graph.proto.graph.input if value.name not in graph.tensors]
    shape = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim][1:] if len(inputs) == 1 else [0]
    if not shape or min(shape) < 1 or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise BenchError(f"{source} needs one float32 input whose shape is fixed but for the batch to be timed.")
    return tuple(shape)


def _sparsity(model: SparseModel) -> float:
    masks = model.masks().values()
    return 1 - sum(int(mask.sum()) for mask in masks) / max(1, sum(mask.size for mask in masks))
