"""Object files linked to images that run wherever they are put, for processes that find them in the cache.

LLVM links as well, but its library alone takes 40 MB of a process. Known here is what LLVM writes as
position-independent code for x86-64 on ELF systems (System V ABI, AMD64 supplement, 4.4); all else is left to LLVM.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

_X86_64, _PROGBITS, _SYMTAB, _RELA = 62, 1, 2, 4
_WRITE, _ALLOC = 1, 2
_PC32, _PLT32 = 2, 4  # relocations: a symbol's distance in 32 bits
_JUMP = b"\xff\x25\x02\x00\x00\x00\xcc\xcc"  # to the address that the next 8 bytes hold
_GLOBAL_FUNCTION = 0x12


class _NotKnown(Exception):
    """Something in an object file that only LLVM can link."""


@dataclass(frozen=True)
class Image:
    """Machine code and its constants."""

    functions: dict[str, int]  # where they begin
    outside: dict[str, int]  # C functions, and where the image expects their addresses, 8 bytes each
    content: bytes

    def dump(self) -> bytes:
        """All of it as bytes."""
        head = asdict(self)
        del head["content"]
        return json.dumps(head).encode() + b"\n" + self.content

    @classmethod
    def read(cls, dumped: bytes) -> Image | None:
        """What `dump` wrote; None where it is something else."""
        if not dumped.startswith(b"{"):
            return None
        head, _, content = dumped.partition(b"\n")
        return cls(content=content, **json.loads(head))


def link(data: bytes) -> Image | None:
    """The image of an object file; None where it is not of a form known here."""
    try:
        return _linked(data)
    except _NotKnown:
        return None


@dataclass(frozen=True)
class _Section:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry: int


def _sections(data: bytes) -> list[_Section]:
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 18) != (_X86_64,):
        raise _NotKnown
    (start,), (size, count) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 58)
    return [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, start + i * size)) for i in range(count)]


def _linked(data: bytes) -> Image:
    sections = _sections(data)
    content, placed = bytearray(), {}
    for number, section in enumerate(sections):
        if section.flags & _ALLOC and section.size and section.flags & _WRITE:
            raise _NotKnown
        if section.flags & _ALLOC and section.type == _PROGBITS:
            content += b"\xcc" * (-len(content) % max(section.align, 1))
            placed[number] = len(content)
            content += data[section.offset : section.offset + section.size]
    symbols = next(section for section in sections if section.type == _SYMTAB)
    names = sections[symbols.link].offset
    functions, outside, addresses = {}, {}, []
    for at in range(symbols.offset, symbols.offset + symbols.size, 24):
        name, kind, _, home, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        text = data[names + name : data.index(b"\0", names + name)].decode()
        addresses.append(placed[home] + value if home in placed else None)
        if home == 0 and text:
            content += b"\xcc" * (-len(content) % 16) + _JUMP + bytes(8)
            addresses[-1], outside[text] = len(content) - 16, len(content) - 8
        elif kind == _GLOBAL_FUNCTION:
            functions[text] = placed[home] + value
    for section in sections:
        if section.type == _RELA and section.info in placed:
            _relocate(data, section, content, placed[section.info], addresses)
    return Image(functions, outside, bytes(content))


def _relocate(data: bytes, table: _Section, content: bytearray, start: int, addresses: list[int | None]) -> None:
    for at in range(table.offset, table.offset + table.size, 24):
        offset, kind, symbol, addend = struct.unpack_from("<QIIq", data, at)
        address = addresses[symbol]
        if kind not in (_PC32, _PLT32) or address is None:
            raise _NotKnown
        struct.pack_into("<i", content, start + offset, address + addend - start - offset)
