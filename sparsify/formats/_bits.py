"""Tensors in files as their bits: any element type, any size, a chunk at a time. numpy alone.

Bits and not numbers, because numpy has no bfloat16 and no float8, and because -0.0 and the many kinds of NaN
must come out as they went in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsify.errors import FormatError

CHUNK = 1 << 22  # elements; a multiple of 8, so that chunks of a bitmask are whole bytes
# Bytes an element, by the names that safetensors gives to element types.
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
NUMPY = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
OF_NUMPY = {name: dtype for dtype, name in NUMPY.items()} | {"bfloat16": "BF16"}
VALUE_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what --values accepts
FLOATS = ("F64", *VALUE_TYPES.values())


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is needed."""

    dtype: str  # a key of WIDTHS
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[np.ndarray]]  # flat unsigned integers, CHUNK elements each but for the last
    # Where only these elements can be other than 0: flat positions, int64 ascending, and their bits.
    entries: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        return WIDTHS[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.size * self.width

    @property
    def is_weight(self) -> bool:
        """Whether this is a matrix or a kernel of floating-point numbers, and not a bias, a norm or a count."""
        return self.dtype in FLOATS and len(self.shape) > 1

    def bits(self) -> np.ndarray:
        """All elements, [size], as unsigned integers of their width."""
        chunks = self.chunks()
        first = next(chunks, np.zeros(0, unsigned(self.dtype)))  # damage shows here, before anything is allocated
        if len(first) == self.size:
            return first
        found = np.empty(self.size, unsigned(self.dtype))
        start = 0
        for chunk in itertools.chain([first], chunks):
            found[start : start + len(chunk)] = chunk
            start += len(chunk)
        return found

    def array(self) -> np.ndarray:
        """As numpy has it; bfloat16 widened to float32, which changes no value. Raises FormatError for float8."""
        bits = self.bits()
        if self.dtype == "BF16":
            return to_float32(bits, "BF16").reshape(self.shape)
        if self.dtype not in NUMPY:
            raise FormatError(
                f"A tensor of type {self.dtype} has no counterpart in numpy, so its values cannot be looked at. "
                f"Such a file can be packed and unpacked, nothing else; convert the tensor to float16 first."
            )
        return bits.view(NUMPY[self.dtype]).reshape(self.shape)


def unsigned(dtype: str) -> np.dtype:
    """numpy's unsigned integer of an element type's width."""
    return np.dtype(f"<u{WIDTHS[dtype]}")


def file_chunks(
    path: Path, start: int, count: int, dtype: np.dtype, damaged: Callable[[str], FormatError]
) -> Iterator[np.ndarray]:
    """`count` elements of a file from byte `start` on, as `StoredTensor.chunks` gives them.

    damaged: makes the error of that file from what was found.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            for begin in range(0, count, CHUNK):
                chunk = np.fromfile(file, dtype, min(CHUNK, count - begin))
                if len(chunk) < min(CHUNK, count - begin):
                    raise damaged("it became shorter while it was read")
                yield chunk
    except OSError as error:
        raise damaged(error.strerror or str(error)) from None


def spread(values: np.ndarray, positions: np.ndarray, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that is 0 but for these values, [nnz], at flat positions, ascending; dense a chunk at a time."""
    dtype = OF_NUMPY[values.dtype.name]
    size, bits = math.prod(shape), values.view(unsigned(dtype))

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, size, CHUNK):
            chunk = np.zeros(min(CHUNK, size - start), bits.dtype)
            part = slice(np.searchsorted(positions, start), np.searchsorted(positions, start + CHUNK))
            chunk[positions[part] - start] = bits[part]
            yield chunk

    return StoredTensor(dtype, shape, chunks, lambda: (positions, bits))


def of_array(array: np.ndarray, name: str) -> StoredTensor:
    """A numpy array as a stored tensor. Raises FormatError for types that safetensors cannot hold."""
    if array.dtype.name not in OF_NUMPY:
        raise FormatError(f"{name} is of type {array.dtype}, which safetensors cannot hold. Convert it first.")
    dtype = OF_NUMPY[array.dtype.name]

    def chunks() -> Iterator[np.ndarray]:
        return of_bits(np.ascontiguousarray(array).reshape(-1).view(unsigned(dtype)), dtype).chunks()

    return StoredTensor(dtype, array.shape, chunks)


def of_bits(bits: np.ndarray, dtype: str) -> StoredTensor:
    """A row of elements, given as unsigned integers of their width, as a stored tensor."""

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, bits.size, CHUNK):
            yield bits[start : start + CHUNK]

    return StoredTensor(dtype, bits.shape, chunks)


def to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that the bits of a floating-point type stand for, nearest in float32."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        numbers: np.ndarray = bits.view(NUMPY[dtype]).astype(np.float32, copy=False)
    return numbers


def of_float32(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Bits of the nearest numbers of a floating-point type, ties to even; what is too large becomes inf."""
    if dtype == "BF16":
        bits = numbers.view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
        quiet = (bits >> 16 | 0x40).astype(np.uint16)  # rounding up could turn a NaN into inf
        return np.where(np.isnan(numbers), quiet, rounded)
    with np.errstate(over="ignore"):
        return numbers.astype(NUMPY[dtype]).view(unsigned(dtype))


def cast(tensor: StoredTensor, dtype: str, name: str) -> StoredTensor:
    """The tensor with its numbers rounded to another floating-point type.

    Reading the result raises FormatError where a finite number becomes infinite.
    """
    if tensor.dtype == dtype:
        return tensor

    def chunks() -> Iterator[np.ndarray]:
        for chunk in tensor.chunks():
            numbers = to_float32(chunk, tensor.dtype)
            bits = of_float32(numbers, dtype)
            finite = np.isfinite(chunk.view(np.float64)) if tensor.dtype == "F64" else np.isfinite(numbers)
            if not np.isfinite(to_float32(bits, dtype)[finite]).all():
                raise FormatError(
                    f"{name} holds values that are too large for {dtype} (the largest is {np.abs(numbers).max():.3g}) "
                    f"and would become infinite. Nothing was written. Use --values bfloat16, which has float32's range."
                )
            yield bits

    return StoredTensor(dtype, tensor.shape, chunks)
