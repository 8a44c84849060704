"""ONNX files opened without their weights: protobuf's wire format walked, large raw data left where it lies.

protobuf itself would read all of a file into memory, and then once more for each copy of a message. Only what is
needed for that is known here: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GRAPH, INITIALIZER, RAW_DATA = (
    7,
    5,
    9,
)  # field numbers of ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
SMALL = 1024  # bytes; raw data below is read with the graph


@dataclass(frozen=True)
class Entry:
    """A serialized TensorProto without its raw data, and where that is: a start and a length in the file."""

    head: bytes
    raw: tuple[int, int] | None  # None where raw data is small, absent, or in another file


def scan(path: Path) -> tuple[bytes, list[Entry]]:
    """The serialized model without the graph's initializers, and these.

    Raises ValueError where the file is not protobuf, OSError where it cannot be read.
    """
    with path.open("rb") as file:
        return scan_open(file.fileno())


def scan_open(descriptor: int) -> tuple[bytes, list[Entry]]:
    """As `scan`, of a file that is open."""
    if os.fstat(descriptor).st_size == 0:
        raise ValueError("it is empty")
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        return scan_bytes(data)


def scan_bytes(data: bytes | mmap.mmap) -> tuple[bytes, list[Entry]]:
    """As `scan`, of a file's content."""
    model, graph, entries = _Kept(data), _Kept(data), []
    for number, wire, start, content, end in _fields(data, 0, len(data)):
        if number != GRAPH or wire != BYTES:
            model.keep(start, end)
            continue
        for inner, inner_wire, inner_start, inner_content, inner_end in _fields(data, content, end):
            if inner == INITIALIZER and inner_wire == BYTES:
                entries.append(_entry(data, inner_content, inner_end))
            else:
                graph.keep(inner_start, inner_end)
    body = graph.content()
    return model.content() + prefix(GRAPH, len(body)) + body, entries


def prefix(number: int, length: int) -> bytes:
    """What stands before a field of `length` bytes: its number and wire type, and the length."""
    return _encoded(number << 3 | BYTES) + _encoded(length)


def _entry(data: bytes | mmap.mmap, start: int, end: int) -> Entry:
    head, raw = _Kept(data), None
    for number, wire, field, content, field_end in _fields(data, start, end):
        if number == RAW_DATA and wire == BYTES and field_end - content >= SMALL:
            raw = (content, field_end - content)
        else:
            head.keep(field, field_end)
    return Entry(head.content(), raw)


class _Kept:
    """Ranges of the file that are read, neighbours as one."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._ranges: list[list[int]] = []

    def keep(self, start: int, end: int) -> None:
        if self._ranges and self._ranges[-1][1] == start:
            self._ranges[-1][1] = end
        else:
            self._ranges.append([start, end])

    def content(self) -> bytes:
        return b"".join(self._data[start:end] for start, end in self._ranges)


def _fields(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the content and end of each field of a message."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        wire, content = tag & 7, at
        if wire == VARINT:
            _, at = _varint(data, at, end)
        elif wire == BYTES:
            length, content = _varint(data, at, end)
            at = content + length
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field at byte {start} is of no known kind")
        if at > end:
            raise ValueError(f"a field at byte {start} is longer than what holds it")
        yield tag >> 3, wire, start, content, at


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number ends beyond byte {at}")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
