"""x86-64 instructions as bytes, many at a time: every function returns uint8 [instructions, bytes].

Registers of a block function (System V calling convention):

    rdi input  rsi output  rdx stream  rcx positions  r8 count  r9 residual  rax, rbx, rbp, r10, r11 temporaries

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, sections 2.3 (VEX) and 2.7
(EVEX), and AMD64 Architecture Programmer's Manual, volume 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Numbers = np.ndarray | int
RAX, RDX, RBX, RBP, R10, R11 = 0, 2, 3, 5, 10, 11
_MAP_0F, _MAP_0F38 = 1, 2
_VECTOR = 64  # bytes of a whole one in AVX-512
_NONE, _66 = 0, 1  # the legacy prefix that VEX and EVEX fold in
RETURN = b"\xc5\xf8\x77\xc3"  # vzeroupper; ret
AGAIN = b"\x0f\x85"  # jump by the 32 bits behind it while the last instruction left something above 0


def _rows(*columns: Numbers) -> np.ndarray:
    """Columns of bytes side by side; single numbers are repeated."""
    sizes = [getattr(column, "size", 1) for column in columns]
    count = max(sizes) if all(sizes) else 0
    found = np.empty((count, len(columns)), np.uint8)
    for number, column in enumerate(columns):
        found[:, number] = column
    return found


def _disp32(displacement: Numbers) -> list[Numbers]:
    return list(fours(displacement).T)


def _modrm(register: Numbers, base: int, mode: int) -> Numbers:
    return (mode << 6) | ((np.asarray(register) & 7) << 3) | (base & 7)


def fetch(base: int, displacement: Numbers) -> np.ndarray:
    """Bring a line that will be written into the first-level cache (prefetchw); `base` is none of r8 to r15."""
    return _rows(0x0F, 0x0D, _modrm(1, base, 2), *_disp32(displacement))


def soon(base: int, displacement: Numbers, level: int = 2) -> np.ndarray:
    """Bring a line into the cache of that level, 1 or 2 (prefetcht0, prefetcht1); `base` is none of r8 to r15."""
    return _rows(0x0F, 0x18, _modrm(level, base, 2), *_disp32(displacement))


def four(number: int) -> bytes:
    """A number in 32 bits, as instructions hold it."""
    return int(number).to_bytes(4, "little", signed=True)


def fours(numbers: Numbers) -> np.ndarray:
    """Numbers in 32 bits: uint8 [numbers, 4]."""
    return np.ascontiguousarray(numbers, "<i4").reshape(-1, 1).view(np.uint8)


def beside(count: int, *parts: bytes | np.ndarray) -> np.ndarray:
    """Instructions side by side, uint8 [count, bytes]: bytes are the same in all rows, arrays have some for each."""
    columns = [
        np.broadcast_to(np.frombuffer(part, np.uint8), (count, len(part)))
        if isinstance(part, bytes)
        else part.reshape(count, -1)
        for part in parts
    ]
    return np.concatenate(columns, axis=1)


def changes(numbers: np.ndarray) -> np.ndarray:
    """Where a number differs from the one before it; the first does."""
    return np.diff(numbers, prepend=numbers[:1] - 1) != 0


def again(body: bytes) -> bytes:
    """`body`, repeated while its last instruction leaves something above 0."""
    return body + AGAIN + four(-(len(body) + 6))


def is_near(displacement: np.ndarray, reach: int) -> np.ndarray:
    """Whether 8 bits hold each displacement of a vector in memory, where they span `reach` bytes."""
    return (displacement % _VECTOR == 0) & (abs(2 * displacement + _VECTOR) < reach)


def move(base: int, distances: Numbers) -> np.ndarray:
    """base += distance; `base` is none of r8 to r15"""
    return _rows(0x48, 0x81, _modrm(0, base, 3), *_disp32(distances))


def put(code: np.ndarray, places: np.ndarray, instructions: np.ndarray) -> None:
    """Write instructions of one length, uint8 [count, bytes], where each begins."""
    length = instructions.shape[1]
    anywhere = np.lib.stride_tricks.as_strided(code, (max(0, len(code) - length + 1), length), (1, 1))
    anywhere[places] = instructions


@dataclass(frozen=True)
class Avx512:
    """Sixteen lanes, 32 registers, weights as embedded broadcasts, stores under a mask register."""

    rows: int = 31  # accumulators; one register is enough for the input, since the CPU renames it at each load
    input: int = 31
    stream_step: int = 256  # floats of the stream that an 8-bit scaled displacement spans
    middle: int = 512  # bytes from where they begin to where rdx points
    width: int = 16
    reach: int = 256 * _VECTOR  # bytes that 8-bit displacements of vectors span

    def _evex(
        self, space: int, prefix: int, opcode: int, register: Numbers, second: Numbers = 0,
        base: int | None = None, *, broadcast: int = 0, mask: int = 0, third: Numbers = 0, zero: int = 0,
    ) -> list[Numbers]:  # fmt: skip
        """The bytes before the addressing byte."""
        r, v = np.asarray(register), np.asarray(second)
        high = (base >> 3) if base is not None else (np.asarray(third) >> 3 & 1)
        extend = 0 if base is not None else (np.asarray(third) >> 4 & 1)
        first = ((~r >> 3 & 1) << 7) | ((1 ^ extend) << 6) | ((1 ^ high) << 5) | ((~r >> 4 & 1) << 4) | space
        return [
            0x62,
            first,
            ((~v & 15) << 3) | 4 | prefix,
            zero << 7 | 0x40 | broadcast << 4 | (~v >> 4 & 1) << 3 | mask,
            opcode,
        ]

    def _far(self, space: int, prefix: int, opcode: int, register: Numbers, base: int, displacement: Numbers,
             second: Numbers = 0, mask: int = 0) -> np.ndarray:  # fmt: skip
        head = self._evex(space, prefix, opcode, register, second, base, mask=mask)
        return _rows(*head, _modrm(register, base, 2), *_disp32(displacement))

    def _whole(self, space: int, prefix: int, opcode: int, register: Numbers, base: int, displacement: Numbers,
               second: Numbers = 0, mask: int = 0) -> np.ndarray:  # fmt: skip
        """As `_far`, for a whole vector of memory: with an 8-bit displacement where all of them are so near."""
        there = np.asarray(displacement)
        if not is_near(there, self.reach).all():
            return self._far(space, prefix, opcode, register, base, there, second, mask)
        head = self._evex(space, prefix, opcode, register, second, base, mask=mask)
        return _rows(*head, _modrm(register, base, 1), there // _VECTOR & 255)

    def turn(self) -> bytes:
        """Once for each vector: mask register 1 from the table, rdx into the middle of its reach."""
        return b"\xc5\xf8\x90\x49\x08" + b"\x49\x8d\x93" + self.middle.to_bytes(4, "little")

    def advance(self) -> np.ndarray:
        """add rdx, stream_step * 4"""
        return _rows(0x48, 0x81, 0xC2, *_disp32(self.stream_step * 4))

    def constant(self, register: Numbers, index: Numbers) -> np.ndarray:
        """register = stream[index], wherever the stream's pointer stands"""
        return self._far(_MAP_0F38, _66, 0x18, register, R11, np.asarray(index) * 4)

    def fma(self, row: Numbers, input: Numbers, index: Numbers) -> np.ndarray:
        """row += input * stream[index]"""
        head = self._evex(_MAP_0F38, _66, 0xB8, row, input, base=RDX, broadcast=1)
        return _rows(*head, _modrm(row, RDX, 1), np.asarray(index) % self.stream_step - 128 & 255)

    def load(self, register: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """register = memory"""
        return self._whole(_MAP_0F, _NONE, 0x10, register, base, displacement)

    def add(self, register: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """register += memory"""
        return self._whole(_MAP_0F, _NONE, 0x58, register, base, displacement, second=register)

    def store(self, register: Numbers, base: int, displacement: Numbers, whole: bool = False) -> np.ndarray:
        """memory = register, under the mask or not"""
        return self._whole(_MAP_0F, _NONE, 0x11, register, base, displacement, mask=0 if whole else 1)

    def everywhere(self) -> bytes:
        """Mask register 1 = all lanes."""
        return b"\xc5\xf4\x46\xc9"  # kxnorw k1, k1, k1

    def fma_memory(self, row: Numbers, input: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """row += input * memory"""
        return self._far(_MAP_0F38, _66, 0xB8, row, base, displacement, second=input)

    def limit(self, kind: str, register: Numbers, index: int, clear: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """register = max or min(stream[index], register): code that fetches the limit once, and code for
        each register. The second operand wins if one is not a number, so such results survive. `clear`: lanes that are
        not in the mask become zero."""
        bound = self.input
        fetch = self.constant(bound, index)
        head = self._evex(_MAP_0F, _NONE, 0x5F if kind == "max" else 0x5D, register, bound, third=register,
                          mask=int(clear), zero=int(clear))  # fmt: skip
        return fetch, _rows(*head, _modrm(register, 0, 3) | np.asarray(register) & 7)


@dataclass(frozen=True)
class Avx2:
    """Eight lanes, 16 registers, a broadcast before each multiplication, stores under a mask vector."""

    rows: int = 13
    input: int = 13
    stream_step: int = 1 << 28  # displacements of 32 bits reach the whole stream
    middle: int = 0
    width: int = 8
    reach: int = 0  # none: there they count bytes
    weight: int = 14
    mask: int = 15

    def _vex(self, space: int, prefix: int, opcode: int, register: Numbers, second: Numbers, high: Numbers) -> list:
        first = ((~np.asarray(register) >> 3 & 1) << 7) | 0x40 | ((1 ^ high) << 5) | space
        return [0xC4, first, ((~np.asarray(second) & 15) << 3) | 4 | prefix, opcode]

    def _far(self, space: int, prefix: int, opcode: int, register: Numbers, base: int, displacement: Numbers,
             second: Numbers = 0) -> np.ndarray:  # fmt: skip
        head = self._vex(space, prefix, opcode, register, second, base >> 3)
        return _rows(*head, _modrm(register, base, 2), *_disp32(displacement))

    def turn(self) -> bytes:
        """Once for each vector: register 15 = the lanes whose mask bit is set; stream[8:16] are the bits."""
        bits = b"\xc4\x62\x7d\x58\x79\x08"  # vpbroadcastd ymm15, [rcx + 8]
        both = b"\xc4\x41\x05\xdb\x7b\x20"  # vpand ymm15, ymm15, [r11 + 32]
        equal = b"\xc4\x41\x05\x76\x7b\x20"  # vpcmpeqd ymm15, ymm15, [r11 + 32]
        return bits + both + equal

    def advance(self) -> np.ndarray:
        """Never needed."""
        return np.zeros((1, 0), np.uint8)

    def constant(self, register: Numbers, index: Numbers) -> np.ndarray:
        """register = stream[index]"""
        return self._far(_MAP_0F38, _66, 0x18, register, R11, np.asarray(index) * 4)

    def fma(self, row: Numbers, input: Numbers, index: Numbers) -> np.ndarray:
        """row += input * stream[index]"""
        weight = np.broadcast_to(self.weight, np.shape(row) or (1,))
        head = self._vex(_MAP_0F38, _66, 0xB8, row, input, self.weight >> 3)
        product = _rows(*head, _modrm(row, 0, 3) | self.weight & 7)
        return np.concatenate([self.constant(weight, index), product], axis=1)

    def load(self, register: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """register = memory"""
        return self._far(_MAP_0F, _NONE, 0x10, register, base, displacement)

    def add(self, register: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """register += memory"""
        return self._far(_MAP_0F, _NONE, 0x58, register, base, displacement, second=register)

    def store(self, register: Numbers, base: int, displacement: Numbers, whole: bool = False) -> np.ndarray:
        """memory = register, under the mask or not"""
        if whole:
            return self._far(_MAP_0F, _NONE, 0x11, register, base, displacement)
        return self._far(_MAP_0F38, _66, 0x2E, register, base, displacement, second=self.mask)

    def everywhere(self) -> bytes:
        """Register 15, the mask = all lanes."""
        return b"\xc4\x41\x05\x76\xff"  # vpcmpeqd ymm15, ymm15, ymm15

    def fma_memory(self, row: Numbers, input: Numbers, base: int, displacement: Numbers) -> np.ndarray:
        """row += input * memory"""
        return self._far(_MAP_0F38, _66, 0xB8, row, base, displacement, second=input)

    def limit(self, kind: str, register: Numbers, index: int, clear: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """As Avx512.limit."""
        bound, r = self.input, np.asarray(register)
        fetch = self.constant(bound, index)
        head = self._vex(_MAP_0F, _NONE, 0x5F if kind == "max" else 0x5D, r, bound, r >> 3 & 1)
        limited = _rows(*head, _modrm(r, 0, 3) | r & 7)
        if clear:
            head = self._vex(_MAP_0F, _NONE, 0x54, r, r, self.mask >> 3)  # vandps
            limited = np.concatenate([limited, _rows(*head, _modrm(r, 0, 3) | self.mask & 7)], axis=1)
        return fetch, limited


Encoder = Avx512 | Avx2


def encoder(level: str) -> Encoder | None:
    """The encoder for a target's level; None where there is none."""
    known: dict[str, Encoder] = {"avx512": Avx512(), "avx2": Avx2()}
    return known.get(level)
