"""Model files. One file each; files whose names begin with an underscore are what they share.

A format has `SUFFIX`, `write(model, path) -> Written` and `read(path) -> SparseModel`; keyword arguments of `write` are
options of the command line. One that can read other programs' files also has `converts(source) -> bool` and
`convert(source, path) -> Written`. Readers need numpy and onnx, never torch: who deploys a sparse model installs no
trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsify import registry
from sparsify.errors import FormatError
from sparsify.formats._bits import StoredTensor, of_array
from sparsify.formats._masks import count, mask_parts
from sparsify.formats._metadata import Metadata as Metadata
from sparsify.topology.costs import Layer
from sparsify.topology.digest import MaskHasher, mask_digest

if TYPE_CHECKING:
    from torch import nn

FILLER = 0.01  # size of a dense twin's random weights, in that of the others


@dataclass(frozen=True, eq=False)
class SparseModel:
    """A network in memory, as a file holds it: every tensor dense, weights outside their mask exactly 0.

    One that is to be written, or was only scanned, may hold a `StoredTensor` in place of an array.
    """

    tensors: dict[str, Any]  # np.ndarray by the name in the model
    layers: list[Layer]  # those that do the work, in order of use; positions are 0 where unknown
    metadata: Metadata | None  # None for a file that another program wrote
    build: Callable[[], nn.Module] | None = None  # of a user's own network, which no file can build

    def masks(self) -> dict[str, np.ndarray]:
        """Where connections exist, recounted from the values; bool, by the weight's name.

        A connection whose weight is exactly 0 is known from the metadata alone.
        """
        found = {layer.name: self.tensors[layer.name] != 0 for layer in self.layers if layer.sparse}
        for name, indices in (self.metadata.live_zeros if self.metadata else {}).items():
            found[name].reshape(-1)[indices] = True
        return found

    def counts(self) -> dict[str, int]:
        """Connections of each weight that has a mask, recounted from the values."""
        if not self._is_scanned():
            return {name: int(mask.sum()) for name, mask in self.masks().items()}
        return {name: count(self._parts(name)) for name in self._masked()}

    def digest(self) -> str:
        """The mask digest, recounted from the values."""
        if not self._is_scanned():
            return mask_digest(self.masks())
        hasher = MaskHasher()
        for name in sorted(self._masked()):
            hasher.add(name, self.tensors[name].shape, self._parts(name))
        return hasher.hexdigest()

    def _masked(self) -> list[str]:
        return [layer.name for layer in self.layers if layer.sparse]

    def _is_scanned(self) -> bool:
        return any(isinstance(self.tensors[name], StoredTensor) for name in self._masked())

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        tensor = self.tensors[name]
        live = (self.metadata.live_zeros if self.metadata else {}).get(name)
        stored = tensor if isinstance(tensor, StoredTensor) else of_array(tensor, name)
        return mask_parts(stored, None if live is None else np.array(live))


@dataclass(frozen=True)
class Compacted:
    """What --compact cut away. Channels are outputs of convolutions and linear layers, weights those of all of them."""

    channels: int  # cut
    all_channels: int
    weights: int  # cut, zeros among them
    all_weights: int
    nonzeros: int  # cut: connections that led to nothing, or from a constant


@dataclass(frozen=True)
class Written:
    """What is known of a file after it was written and read again."""

    path: Path
    size: int  # bytes
    digest: str  # of the masks, recounted from the file
    relative_error: float | None = None  # of its outputs against the source's, where a runtime ran it
    dense_size: int | None = None  # bytes of the same tensors, dense and as the source has them
    folded: int | None = None  # encoded weights that onnxruntime turned into constants at load: all of them
    compacted: Compacted | None = None  # where it was asked for; the digest is that of what is left


def load_format(name: str) -> Any:
    """The module of the named format."""
    return registry.load("formats", name)


def read_model(path: Path, scan: bool = False) -> SparseModel:
    """Read a model file by its suffix, or whatever else a format can convert from: shards, a torch checkpoint.

    scan: leave tensors in the file where the format can (`scan` beside its `read`), to be counted and no more.
    Raises FormatError where it is damaged or not a model.
    """
    modules = [load_format(name) for name in registry.names("formats")]
    for module in modules:
        if path.suffix == module.SUFFIX and not path.is_dir():
            if not path.is_file():
                raise FormatError(f"There is no file {path}. Check the path.")
            model: SparseModel = _reader(module, scan)(path)
            return model
    for module in modules:
        if hasattr(module, "converts") and module.converts(path):
            foreign: SparseModel = _reader(module, scan)(path)
            return foreign
    if path.is_dir():
        raise FormatError(
            f"{path} is a folder but neither a run, which has a recipe.toml, nor a checkpoint in shards, which has "
            f"one model.safetensors.index.json. Check the path."
        )
    known = ", ".join(module.SUFFIX for module in modules)
    raise FormatError(f"{path} has a suffix that no format answers to. Known: {known}.")


def _reader(module: Any, scan: bool) -> Callable[[Path], SparseModel]:
    reader: Callable[[Path], SparseModel] = getattr(module, "scan", module.read) if scan else module.read
    return reader


def check_against_metadata(model: SparseModel, path: Path) -> SparseModel:
    """Return the model if its values are what its metadata says. Raises FormatError otherwise."""
    if model.metadata is None:
        return model
    for name, layer in model.metadata.layers.items():
        if name not in model.tensors or list(model.tensors[name].shape) != layer.shape:
            raise FormatError(_altered(path, f"the weight {name} of shape {layer.shape} is not in it"))
        zeros = model.metadata.live_zeros.get(name, [])
        if zeros and not 0 <= min(zeros) <= max(zeros) < model.tensors[name].size:
            raise FormatError(_altered(path, f"positions of {name} lie outside of it"))
    if model.digest() != model.metadata.mask_digest:
        raise FormatError(_altered(path, "the non-zeros counted in it do not give the recorded mask digest"))
    return model


def densified(model: SparseModel, seed: int = 0) -> SparseModel:
    """The dense twin: the same network with every zero weight replaced by a small random one.

    Small, so that activations stay as they are: weights of the others' size would multiply them in every layer, and
    those of a deep network would overflow.
    """
    random = np.random.default_rng(seed)
    tensors = dict(model.tensors)
    for name, mask in model.masks().items():
        weight = tensors[name]
        scale = float(weight[mask].std()) if mask.any() else 0.01
        filler = random.standard_normal(weight.shape, dtype=np.float32) * max(scale, 1e-3) * FILLER
        tensors[name] = np.where(weight != 0, weight, filler).astype(weight.dtype)
    metadata = model.metadata and model.metadata.densified(mask_digest({n: tensors[n] != 0 for n in model.masks()}))
    return replace(model, tensors=tensors, metadata=metadata)


def _altered(path: Path, found: str) -> str:
    return (
        f"{path} does not agree with its own metadata: {found}. It was changed after it was written, or damaged. "
        f"Export it again from its run."
    )
