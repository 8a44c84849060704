"""safetensors: dense, masked weights that any tool reads, or packed ones (docs/format.md), with our metadata.

The files are written here and not by the library, which orders its metadata at random: same input, same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.errors import FormatError
from sparsify.files import replacing
from sparsify.formats import SparseModel, Written, check_against_metadata
from sparsify.formats._bits import cast
from sparsify.formats._compact_model import compact_model
from sparsify.formats._containers import WHOLE, container_opener, open_tensors
from sparsify.formats._header import TensorFile, read_file
from sparsify.formats._metadata import KEY, Metadata, parse_metadata
from sparsify.formats._packed import broken, unpacked
from sparsify.formats._prune import check_sparsity
from sparsify.formats._prune import prune as prune_weight
from sparsify.formats._values import stored_model, value_type
from sparsify.formats._writer import (
    Watch,
    check_space,
    unwatched,
    weights_digest,
    write_dense,
    write_packed,
)
from sparsify.topology.costs import Layer

SUFFIX = ".safetensors"


def write(
    model: SparseModel,
    path: Path,
    *,
    packed: bool = False,
    values: str | None = None,
    compact: bool = False,
    watch: Watch | None = None,
) -> Written:
    """Write a model and prove it by reading it again; the same model gives the same bytes.

    packed: weights as their non-zeros and positions. values: float32, float16 or bfloat16 for the weights.
    compact: cut dead channels away, of a network of ours. Raises DiskError, and FormatError for values too large for
    their type; `path` is then as it was.
    """
    error, compacted = None, None
    if compact:
        model, error, compacted = compact_model(model)
    file, live = _to_file(model, values)
    digest = ""

    def prove(partial: Path) -> None:
        nonlocal digest
        read = unpacked(read_file(partial), partial)
        digest = _load(read, partial, scanned=True).digest()

    _write(file, path, packed, watch, live, prove)
    return Written(path, path.stat().st_size, digest, error, _dense_size(file), compacted=compacted)


def read(path: Path) -> SparseModel:
    """Read a file of ours or of anybody's, dense or packed, a sharded folder or a torch checkpoint.

    Raises FormatError where it is damaged or does not agree with what it says of itself.
    """
    return _load(open_tensors(path), path)


def scan(path: Path) -> SparseModel:
    """As `read`, with tensors that stay in the file until they are looked at."""
    return _load(open_tensors(path), path, scanned=True)


def converts(source: Path) -> bool:
    """Whether `convert` can read this file or folder."""
    return container_opener(source) is not None


def convert(
    source: Path,
    path: Path,
    *,
    packed: bool = False,
    values: str | None = None,
    prune: float | None = None,
    compact: bool = False,
    watch: Watch | None = None,
) -> Written:
    """Write the tensors of another file, one at a time: memory holds about the largest of them.

    prune: sparsity to which each weight is magnitude-pruned first; other options as in `write`.
    Raises SparsifyError where the source cannot be read or the masks of the result are not the source's.
    """
    file = open_tensors(source)
    record = parse_metadata(file.metadata[KEY], source) if KEY in file.metadata else None
    if record is not None and prune is not None:
        raise FormatError(
            f"{source} was trained by sparsify, and its record would no longer be true of a pruned model. Train at the "
            f"sparsity that you need, or leave --prune away."
        )
    if compact and record is None:
        raise FormatError(
            f"--compact has to know how the layers of {source} follow one another, and a file of tensors does not say "
            f"it. Give a run of sparsify, or export the model to ONNX and compact that file."
        )
    if record is not None and (values is not None or compact):
        return write(_to_model(_arrays(file), record), path, packed=packed, values=values, compact=compact, watch=watch)
    file = _transformed(file, values, prune)
    live = {name: np.array(zeros) for name, zeros in record.live_zeros.items()} if record else {}
    digest = _write(file, path, packed, watch, live)
    return Written(path, path.stat().st_size, record.mask_digest if record else digest, dense_size=_dense_size(file))


def _transformed(file: TensorFile, values: str | None, sparsity: float | None) -> TensorFile:
    tensors = file.tensors
    if sparsity is not None:
        check_sparsity(sparsity)
        tensors = {name: prune_weight(tensor, sparsity) for name, tensor in tensors.items()}
    if values is not None:
        dtype = value_type(values)
        tensors = {name: cast(t, dtype, name) if t.is_weight else t for name, t in tensors.items()}
    return TensorFile(tensors, file.metadata)


def _write(
    file: TensorFile,
    path: Path,
    packed: bool,
    watch: Watch | None,
    live: dict[str, np.ndarray],
    prove: Callable[[Path], object] | None = None,
) -> str:
    """Write either form and recount it; return the digest of the weights' masks.

    prove: looks at the written file before it takes the place of what stands at `path`.
    """
    if packed and path.name == WHOLE:
        raise FormatError(
            f"A packed file must not be called {WHOLE}: programs that expect dense weights under that name would load "
            f"it without its weights and say nothing. Name it model.sparse.safetensors."
        )
    check_space(file, path, packed)
    with replacing(path) as partial:
        with partial.open("w+b") as out:
            if packed:
                digest = write_packed(file, out, watch or unwatched, live)
            else:
                write_dense(file, out, watch or unwatched)
                digest = weights_digest(file)
        if weights_digest(unpacked(read_file(partial), partial)) != digest:
            raise FormatError(
                f"The masks recounted from {path} are not the source's. Nothing was written. "
                f"The disk or the source failed while it was read; if it happens again, please report it."
            )
        if prove is not None:
            prove(partial)
    return digest


def _load(file: TensorFile, path: Path, scanned: bool = False) -> SparseModel:
    tensors = dict(file.tensors) if scanned else _arrays(file)
    if KEY in file.metadata:
        return check_against_metadata(_to_model(tensors, parse_metadata(file.metadata[KEY], path)), path)
    layers = [Layer(name, tensor.shape, 0) for name, tensor in file.tensors.items() if tensor.is_weight]
    model = SparseModel(tensors, layers, None)
    if file.mask_digest not in (None, model.digest()):
        raise broken(path, "the non-zeros counted in it do not give the recorded mask digest")
    return model


def _to_file(model: SparseModel, values: str | None) -> tuple[TensorFile, dict[str, np.ndarray]]:
    tensors, record = stored_model(model, values)
    if record is None:
        return TensorFile(tensors, {"format": "pt"}), {}
    live = {name: np.array(zeros) for name, zeros in record.live_zeros.items()}
    return TensorFile(tensors, {"format": "pt", KEY: record.model_dump_json()}), live


def _to_model(tensors: dict[str, Any], record: Metadata) -> SparseModel:
    layers = [layer.layer(name) for name, layer in record.layers.items()]
    return SparseModel(tensors, layers, record)


def _arrays(file: TensorFile) -> dict[str, np.ndarray]:
    return {name: tensor.array() for name, tensor in file.tensors.items()}


def _dense_size(file: TensorFile) -> int:
    return sum(tensor.nbytes for tensor in file.tensors.values())
