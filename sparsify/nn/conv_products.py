"""Calls of a sparse convolution's products on torch tensors, float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sparsify.engine.encode import encoder
from sparsify.engine.library import library
from sparsify.engine.memory import Code
from sparsify.engine.target import Target, host
from sparsify.nn import kernels, team
from sparsify.nn.conv_code import Ahead, Entries, Program, products, sums
from sparsify.nn.conv_pattern import ConvPattern, Geometry
from sparsify.nn.memory import ACTIVATIONS

_TILE = {"sums": 4, "products": 1}  # positions that one function goes over before the next one does
_NEAR = 640 << 10  # bytes of input that a strip of the image is as wide as to read again and again
_POSITIONS = 2  # that sums fetch ahead
_FETCHED = 6 << 20  # bytes of planes from which on a core's caches do not hold them and the next ones are fetched early
_CHUNKS = 8  # of positions, shared out over threads
_SUMS = 1 << 20  # bytes of sums of the weight gradient that exist at a time
_ALONE = 200_000  # multiply-adds of a product that one thread does sooner than two could meet


@dataclass(frozen=True)
class Sizes:
    """Of one batch."""

    height: int  # of the input
    width: int
    pitch: int  # lanes of a plane: the batch, filled up with zeros to whole vectors


def sizes_of(x: Tensor, target: Target) -> Sizes:
    """x: [n, c, h, w]"""
    n, _, height, width = x.shape
    return Sizes(height, width, max(1, -(-n // target.width)) * target.width)


def planes(x: Tensor, pitch: int) -> Tensor:
    """[n, c, h, w] as planes [h, w, c, pitch]; not copied where it is their permutation already."""
    moved = x.permute(2, 3, 1, 0)
    if len(x) == pitch:
        return moved.contiguous()
    result = x.new_zeros(*moved.shape[:3], pitch)
    result[..., : len(x)] = moved
    return result


def are_planes(x: Tensor) -> bool:
    """Whether [n, c, h, w] is a permutation of planes that are as wide as the batch."""
    return x.permute(2, 3, 1, 0).is_contiguous()


def strides_of(channels: int, width: int, pitch: int) -> tuple[int, int, int, int]:
    """Of planes [h, w, c, pitch] that are seen as [n, c, h, w]."""
    return 1, pitch, width * channels * pitch, channels * pitch


def images(planes: Tensor, batch: int) -> Tensor:
    """Planes [h, w, c, pitch] as [n, c, h, w]: the same memory, but no view, which autograd would not let change."""
    height, width, channels, pitch = planes.shape
    shape, strides = (batch, channels, height, width), strides_of(channels, width, pitch)
    return planes.new_empty(0).set_(planes.untyped_storage(), planes.storage_offset(), shape, strides)


class ConvProducts:
    """The three products on one pattern. Keeps no activations; may be used by one thread at a time."""

    def __init__(self, pattern: ConvPattern, geometry: Geometry, target: Target | None = None) -> None:
        self.pattern, self.geometry, self.target = pattern, geometry, target or host()
        self.library = library(self.target, kernels)
        row, column, tap = pattern.channels()
        outputs, inputs = pattern.shape[0], pattern.shape[1] * pattern.groups
        self._entries = Entries(row, column, tap, outputs, inputs, geometry.taps)
        self._turned = Entries(column, row, tap, inputs, outputs, geometry.taps)
        self._calls: dict[tuple[str, Sizes], _Call] = {}

    def stream(self, values: Tensor, bias: Tensor, sizes: Sizes) -> Tensor:
        """[nnz] and [out] in the order in which `forward` reads them: a copy, which later changes do not touch."""
        return torch.cat([values, bias]).index_select(0, self._call("forward", sizes).gather)

    def forward(self, x: Tensor, stream: Tensor, sizes: Sizes, added: Tensor | None = None) -> Tensor:
        """Planes [h, w, in, pitch] to planes [h', w', out, pitch], to which `added` is added if it is given."""
        y = ACTIVATIONS.empty(*self.geometry.output(sizes.height, sizes.width), self._entries.rows, sizes.pitch)
        self._call("forward", sizes).run([x, y, stream, *([] if added is None else [added])])
        return y

    def input_gradient(self, dy: Tensor, values: Tensor, sizes: Sizes) -> Tensor:
        """Planes [h', w', out, pitch], [nnz] to planes [h, w, in, pitch]."""
        dx = ACTIVATIONS.empty(sizes.height, sizes.width, self._entries.columns, sizes.pitch)
        call = self._call("input", sizes)
        stream = torch.cat([values, values.new_zeros(self._entries.columns)]).index_select(0, call.gather)
        call.run([dy, dx, stream])
        return dx

    def weight_gradient(self, x: Tensor, dy: Tensor, sizes: Sizes) -> Tensor:
        """Gradients of the values, [nnz]."""
        dw = x.new_empty(self.pattern.count)  # in the order of the code
        if not self.pattern.count:
            return dw
        call = self._call("weight", sizes)
        for functions, (first, last) in call.groups:
            sums = ACTIVATIONS.empty(call.chunks, last - first, self.target.width)
            found = x.new_empty(call.chunks, last - first)
            call.run([x, dy, sums, found], functions)
            torch.sum(found, 0, out=dw[first:last])
        return dw.index_select(0, call.back)

    def _call(self, name: str, sizes: Sizes) -> _Call:
        call = self._calls.get((name, sizes))
        if call is None:
            call = self._calls[name, sizes] = self._make(name, sizes)
        return call

    def _make(self, name: str, sizes: Sizes) -> _Call:
        found = encoder(self.target.level)
        assert found is not None
        entries = self._turned if name == "input" else self._entries
        table = _table(self.geometry, sizes, entries.columns, name == "input")
        if name == "weight":
            program = products(entries, sizes.pitch, found)
        else:
            program = sums(entries, sizes.pitch, found, _ahead(table, entries, sizes.pitch))
        kind, geometry = "products" if name == "weight" else "sums", self.geometry
        height, width = (sizes.height, sizes.width) if name == "input" else geometry.output(sizes.height, sizes.width)
        near = _NEAR // (geometry.kernel[0] * entries.columns * sizes.pitch * 4) - geometry.kernel[1] + 1
        tiles = _tiles(height, width, max(1, near), _TILE[kind])
        return _Call(self, kind, program, table, tiles, entries.rows * sizes.pitch * 4)


@lru_cache(maxsize=64)
def _table(geometry: Geometry, sizes: Sizes, channels: int, turned: bool) -> np.ndarray:
    """int64 [positions, taps]: bytes from the first input to the channels of each tap, -1 where it falls outside."""
    places = geometry.readers if turned else geometry.sources
    found = places(sizes.height, sizes.width)
    return np.where(found < 0, -1, found * channels * sizes.pitch * 4)


def _ahead(table: np.ndarray, entries: Entries, pitch: int) -> Ahead | None:
    """What sums fetch early; None where the caches hold it."""
    inside = table[(table >= 0).all(1)]
    if len(table) * entries.rows * pitch * 4 < _FETCHED or not len(inside):
        return None
    step = _POSITIONS * pitch * 4
    return Ahead(inside[0, -1] - inside[0] + step * entries.columns, step * entries.rows)


def _tiles(height: int, width: int, strip: int, most: int) -> np.ndarray:
    """int64 [tiles, 2]: first position and number of positions of each, strip by strip from the top to the bottom."""
    found = []
    for left in range(0, width, strip):
        right = min(left + strip, width)
        across = [(column, min(most, right - column)) for column in range(left, right, most)]
        found += [(row * width + column, count) for row in range(height) for column, count in across]
    return np.array(found, np.int64)


class _Call:
    """One product at one size: what the threads of a team share. `chunks` of positions have sums of their own."""

    def __init__(
        self, owner: ConvProducts, kind: str, program: Program, table: np.ndarray, tiles: np.ndarray, step: int
    ) -> None:
        positions, taps = table.shape
        self._tiles = tiles
        self._lane = owner.target.width * 4  # bytes of a sum
        lanes = owner.pattern.count * self._lane
        self.chunks = _CHUNKS if kind == "sums" else min(4, max(1, _SUMS // 2 // max(1, lanes)))
        self.gather = torch.from_numpy(program.gather)
        if kind == "products":  # whose gather is a permutation, and back the way back
            self.back = torch.empty_like(self.gather)
            self.back[self.gather] = torch.arange(len(self.gather))
        self._starts = (
            np.append(program.records[:, 2] // self._lane, owner.pattern.count) if kind == "products" else None
        )
        fetches = int(positions * step >= _FETCHED)
        numbers = [len(program.records), len(tiles), -(-len(tiles) // self.chunks), step, taps * 8, 0, 0, 1, fetches]
        self._parameters = np.array(numbers, np.int64)
        self._splits: dict[tuple[tuple[int, int], int], tuple[np.ndarray, int, int]] = {}
        self.groups = [] if self._starts is None else list(self._groups(self._starts))
        self._arrays = [self._parameters, np.ascontiguousarray(program.records), table]
        self._code = Code.of(program.code)
        first = [array.ctypes.data for array in self._arrays]
        addresses = [*first, self._code.address, tiles.ctypes.data, 0, 0]
        self._constants, self._buffers = np.array(addresses, np.int64), np.zeros(4, np.int64)
        if self._starts is not None:
            self._constants[-1] = self._starts.ctypes.data
        function = owner.library.address(f"sparsify_conv_{kind}")
        self._task = np.array([0, 0, function, self._buffers.ctypes.data, self._constants.ctypes.data], np.int64)
        self._share = owner.library.address("sparsify_share")
        self._is_small = lanes // 4 * positions < _ALONE

    def _groups(self, starts: np.ndarray) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Functions of products whose sums exist at a time, and their non-zeros. starts: where a function's begin."""
        most, first = _SUMS // self._lane, 0
        while first < len(starts) - 1:
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + most, side="right")) - 1)
            yield (first, last), (int(starts[first]), int(starts[last]))
            first = last

    def _split(self, functions: tuple[int, int], shares: int) -> tuple[np.ndarray, int, int]:
        """Where each share of some functions begins, and their first and last non-zero; kept for the next step."""
        if (functions, shares) not in self._splits:
            assert self._starts is not None
            first, last = (int(self._starts[function]) for function in functions)
            split = np.searchsorted(self._starts, np.linspace(first, last, shares + 1)), first, last
            self._splits[functions, shares] = split
        return self._splits[functions, shares]

    def run(self, tensors: Sequence[Tensor], functions: tuple[int, int] | None = None) -> None:
        """tensors: x, y, the stream and what is added to y, if anything is; or x, dy, sums and dw of `functions`."""
        threads = 1 if self._is_small else torch.get_num_threads()
        pieces = self.chunks
        if functions is not None:
            shares = -(-threads // self.chunks)  # where chunks are too few, threads share out the functions
            split, first, last = self._split(functions, shares)
            self._parameters[5:8] = last - first, first, shares
            self._constants[-2] = split.ctypes.data
            pieces = self.chunks * shares
        self._task[:2] = 0, pieces
        self._buffers[:] = 0
        self._buffers[: len(tensors)] = [tensor.data_ptr() for tensor in tensors]
        team.run(self._share, self._task.ctypes.data, threads)
