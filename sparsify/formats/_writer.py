"""Writing safetensors tensor by tensor, dense or packed: one pass, bounded memory, the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsify.files import has_space, require_space
from sparsify.formats import _packed
from sparsify.formats._bits import StoredTensor
from sparsify.formats._header import TensorFile
from sparsify.formats._packed import Mask, Pair, mask_of, pack, part_names
from sparsify.formats._parallel import MEMORY, in_order
from sparsify.formats._positions import padding
from sparsify.topology.digest import MaskHasher

Watch = Callable[[int, int], object]  # (bytes of the source that are done, bytes of the source)
Named = tuple[str, StoredTensor]
LONGEST = "bitmask"  # among the encodings' names; headers are reserved with it
SHIFT = 1 << 24  # bytes moved at a time


def write_dense(file: TensorFile, out: BinaryIO, watch: Watch) -> None:
    """Write every tensor dense, widest element type first, then by name."""
    layout, order = _dense_layout(file)
    out.write(layout.header())
    _copy(order, out, _counted(watch, layout.end))


def write_packed(file: TensorFile, out: BinaryIO, watch: Watch, live: Mapping[str, np.ndarray]) -> str:
    """Write tensors as pairs where that is smaller, by name; return the mask digest of the weights.

    Where pairs make the file no smaller it is the dense one.
    out: empty, open for reading and writing. live: by the tensor's name, ascending flat positions of connections
    whose weight is 0.
    """
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    layout, index, hasher = _Layout(file.metadata), {}, MaskHasher()
    reserved = _reserve(file, total)
    out.write(b" " * reserved)
    progress = _counted(watch, total)
    later = []  # dense tensors that would misalign those behind them
    for (name, tensor), (pair, mask) in _pack_all(file, live):
        if tensor.is_weight:
            hasher.add(name, tensor.shape, mask)
        if pair is not None:
            index[name] = (pair.encoding, tensor.shape)
            _write_pair(out, layout, name, tensor, pair)
            progress(tensor.nbytes)
        elif tensor.nbytes % 8:
            later.append((name, tensor))
        else:
            layout.add(name, tensor.dtype, tensor.shape, tensor.nbytes)
            _copy([(name, tensor)], out, progress)
    later.sort(key=lambda item: (-item[1].width, item[0]))
    for name, tensor in later:
        layout.add(name, tensor.dtype, tensor.shape, tensor.nbytes)
    _copy(later, out, progress)
    if index:
        layout.metadata[_packed.KEY] = _packed.index_text(index, hasher.hexdigest())
    if not _finish(out, layout, reserved, _dense_layout(file)[0]):
        out.seek(0)
        write_dense(file, out, unwatched)
        out.truncate()
    return hasher.hexdigest()


def check_space(file: TensorFile, path: Path, packed: bool) -> None:
    """Raise DiskError where the file would not fit.

    The size of a packed one is not known before: where even the dense form fits, that is enough; where it does
    not, non-zeros are counted in a pass of their own.
    """
    layout, _ = _dense_layout(file)
    dense = len(layout.header()) + layout.end
    if not packed or has_space(path, dense):
        return require_space(path, dense)
    needed = _reserve(file, layout.end)
    for tensor in file.tensors.values():
        parts = tensor.chunks() if tensor.entries is None else [tensor.entries()[1]]
        stored = sum(int(np.count_nonzero(part)) for part in parts)
        needed += min(tensor.nbytes, stored * tensor.width + tensor.size // 8 + 1)
    return require_space(path, needed)


def weights_digest(file: TensorFile) -> str:
    """The mask digest of every weight, recounted from the values. Raises FormatError for damaged pairs."""
    hasher = MaskHasher()
    weights = [item for item in sorted(file.tensors.items()) if item[1].is_weight]
    masks = in_order(lambda item: mask_of(item[1]), weights, lambda item: item[1].nbytes)
    for (name, tensor), mask in zip(weights, masks, strict=True):
        hasher.add(name, tensor.shape, mask)
    return hasher.hexdigest()


class _Layout:
    """The header as it grows: entries without holes, and where the next tensor goes."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self.metadata = dict(metadata)
        self.entries: dict[str, Any] = {}
        self.end = 0  # bytes of data so far

    def add(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        begin, self.end = self.end, self.end + nbytes
        self.entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self.end]}

    def header(self, reserved: int = 0) -> bytes:
        """Length and JSON, padded with spaces so that data is aligned to 8, or to `reserved` bytes."""
        entries = {"__metadata__": dict(sorted(self.metadata.items())), **self.entries}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        text = text.ljust(reserved - 8)
        return len(text).to_bytes(8, "little") + text


def _dense_layout(file: TensorFile) -> tuple[_Layout, list[Named]]:
    order = sorted(file.tensors.items(), key=lambda item: (-item[1].width, item[0]))
    layout = _Layout(file.metadata)
    for name, tensor in order:
        layout.add(name, tensor.dtype, tensor.shape, tensor.nbytes)
    return layout, order


def _pack_all(file: TensorFile, live: Mapping[str, np.ndarray]) -> Iterator[tuple[Named, tuple[Pair | None, Mask]]]:
    order = sorted(file.tensors.items())

    def work(item: Named) -> tuple[Pair | None, Mask]:
        name, tensor = item
        if file.tensors.keys() & set(part_names(name)):
            return None, mask_of(tensor)
        return pack(tensor, live.get(name))

    yield from zip(order, in_order(work, order, lambda item: item[1].nbytes), strict=True)


def _write_pair(out: BinaryIO, layout: _Layout, name: str, tensor: StoredTensor, pair: Pair) -> None:
    size = pair.values.nbytes + len(pair.positions)
    positions = np.concatenate([pair.positions, padding(pair.encoding, -size % 8)])
    layout.add(f"{name}.values", tensor.dtype, pair.values.shape, pair.values.nbytes)
    layout.add(f"{name}.{pair.encoding}", "U8", positions.shape, positions.nbytes)
    out.write(pair.values.data)
    out.write(positions.data)


def read_ahead(order: Iterable[Named]) -> Iterator[tuple[Named, Iterable[np.ndarray]]]:
    """Tensors with their content: small ones read ahead in parallel, large ones chunk by chunk as they are taken."""

    def load(item: Named) -> tuple[Named, Iterable[np.ndarray]]:
        return item, [item[1].bits()] if item[1].nbytes <= MEMORY // 4 else item[1].chunks()

    return in_order(load, order, lambda item: min(item[1].nbytes, MEMORY // 4))


def _copy(order: Iterable[Named], out: BinaryIO, progress: Callable[[int], None]) -> None:
    for _, pieces in read_ahead(order):
        for piece in pieces:
            out.write(np.ascontiguousarray(piece).data)
            progress(piece.nbytes)


def _reserve(file: TensorFile, total: int) -> int:
    """Bytes that the header cannot outgrow, its length included."""
    layout, index = _Layout(file.metadata), {}
    for name, tensor in file.tensors.items():
        layout.end = 10 * total + 10**9  # more digits than any offset will have
        layout.add(name, tensor.dtype, tensor.shape, 0)
        if tensor.nbytes > _packed.OVERHEAD:
            index[name] = (LONGEST, tensor.shape)
            layout.add(f"{name}.values", tensor.dtype, (tensor.size,), 0)
            layout.add(f"{name}.{LONGEST}", "U8", (tensor.size,), 0)
    layout.metadata[_packed.KEY] = _packed.index_text(index, "0" * 64)
    return len(layout.header())


def _finish(out: BinaryIO, layout: _Layout, reserved: int, dense: _Layout) -> bool:
    """Fill in the header; whether the file is smaller than the dense one.

    Where the room left over would be felt, the data moves up to the header.
    """
    header, most = layout.header(), len(dense.header()) + dense.end
    slack = reserved - len(header)
    if len(header) + layout.end >= most:
        return False
    if slack * 1000 < layout.end and reserved + layout.end < most:
        header = layout.header(reserved)
    else:
        for start in range(reserved, reserved + layout.end, SHIFT):
            out.seek(start)
            piece = out.read(SHIFT)
            out.seek(start - slack)
            out.write(piece)
        out.truncate(len(header) + layout.end)
    out.seek(0)
    out.write(header)
    return True


def unwatched(done: int, total: int) -> None:
    """Nobody asked for progress."""


def _counted(watch: Watch, total: int) -> Callable[[int], None]:
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        watch(done, total)

    return add
