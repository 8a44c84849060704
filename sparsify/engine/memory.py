"""Memory for machine code, and arrays that begin on a cache line."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsify.errors import EngineError

LINE = 64  # bytes
AROUND = 4 * LINE  # before and behind what planes lie in: vectors may begin before it and end behind it
_HUGE = 2 << 20
_BLOCK = 16 << 20  # bytes of an arena of weights or code, only those touched of which are memory
_READ, _WRITE, _EXECUTE = 1, 2, 4
_MADV_HUGEPAGE = 14


def aligned(count: int, dtype: type = np.float32, fill: float = 0) -> np.ndarray:
    """An array [count] whose first element lies on a cache line."""
    size = np.dtype(dtype).itemsize
    raw: np.ndarray = np.full(count + LINE // size, fill, dtype)
    start = -raw.ctypes.data % LINE // size
    return raw[start : start + count]


class Arena:
    """One block of memory, handed out in pieces that begin on cache lines.

    In large pages where the system gives them: a kernel touches hundreds of channels at once, each on a
    page of its own otherwise, and a core finds only about a hundred pages quickly.
    """

    def __init__(self, size: int) -> None:
        """`size`: all bytes that will be taken, each piece rounded up to whole cache lines."""
        length = -(-max(size, 1) // _HUGE) * _HUGE + _HUGE
        # Private: Linux gives shared mappings, which are Python's default, no large pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        mapped = mmap.mmap(-1, length, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapped.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(mapped, np.uint8)
        self.size = size
        self._next = -memory.ctypes.data % _HUGE
        self._memory = memory

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes, zeros: uint8 [size]."""
        piece = self._memory[self._next : self._next + size]
        assert len(piece) == size, "the arena was made too small"
        self._next += lines(size)
        return piece


@dataclass(frozen=True, eq=False)
class Written:
    """An array that is written where it stays, and not made before: `write` fills `size` zeros of that dtype."""

    size: int
    write: Callable[[np.ndarray], None]
    dtype: type = np.float32

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.size * np.dtype(self.dtype).itemsize


def joined(parts: Sequence[np.ndarray]) -> Written:
    """Flat arrays of one dtype, one after the other."""

    def write(home: np.ndarray) -> None:
        np.concatenate(parts, out=home)

    return Written(sum(len(part) for part in parts), write, parts[0].dtype.type)


def lines(size: int) -> int:
    """`size` bytes rounded up to whole cache lines."""
    return -(-size // LINE) * LINE


class Code:
    """Machine code in pages that are written first and made executable then, never both at once."""

    def __init__(self, size: int) -> None:
        """`size`: all bytes that will be put there, each piece rounded up to whole cache lines. Raises EngineError
        where there is no memory."""
        libc = _libc()
        # Large pages, where the system gives them: code of many megabytes otherwise misses in the TLB.
        length = -(-max(size, 1) // _HUGE) * _HUGE + _HUGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = libc.mmap(None, length, _READ | _WRITE, flags, -1, 0)
        if mapped in (None, ctypes.c_void_p(-1).value):
            raise _refused()
        self._release = weakref.finalize(self, libc.munmap, mapped, length)
        self._release.atexit = False  # threads may run it up to the very end
        self.address = self._next = -(-mapped // _HUGE) * _HUGE
        self._end = self.address + length - _HUGE
        if sys.platform == "linux" and size > _HUGE // 4:
            libc.madvise(self.address, self._end - self.address, _MADV_HUGEPAGE)

    @classmethod
    def of(cls, piece: bytes) -> Code:
        """One piece alone, ready to run."""
        code = cls(len(piece))
        code.put(piece)
        code.seal()
        return code

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._end - self._next

    def put(self, piece: bytes) -> int:
        """Where the piece is from now on, the rest of its last cache line filled with traps."""
        place, size = self._next, lines(len(piece))
        assert size <= self.room, "the block of code was made too small"
        ctypes.memset(place, 0xCC, size)
        ctypes.memmove(place, piece, len(piece))
        self._next += size
        return place

    def seal(self) -> None:
        """Make all of it executable. Raises EngineError where the system refuses that."""
        if _libc().mprotect(self.address, self._end - self.address, _READ | _EXECUTE) != 0:
            raise _refused()


def _refused() -> EngineError:
    return EngineError(
        f"Machine code could not be made executable: {os.strerror(ctypes.get_errno())}. The likely cause is a hardened "
        "system that refuses memory that was written to, or one short of memory. Allow it for this process, or run "
        "the model in another runtime."
    )


class Weights:
    """Memory for what stages keep, arrays and code, in arenas that are added as it grows."""

    def __init__(self) -> None:
        self.size = 0  # bytes that were taken
        self._arenas: list[Arena] = []
        self._room = 0
        self._code: list[Code] = []

    def kept(self, array: np.ndarray | Written) -> np.ndarray:
        """A copy of an array, flat, that begins on a cache line and lives as long as this."""
        size = lines(array.nbytes)
        if size > self._room:
            self._room = max(size, _BLOCK)
            self._arenas.append(Arena(self._room))
        self._room -= size
        self.size += size
        home = self._arenas[-1].take(array.nbytes)[: array.nbytes].view(array.dtype)
        if isinstance(array, Written):
            array.write(home)
        else:
            home[:] = array.reshape(-1)
        return home

    def put(self, pieces: Sequence[bytes]) -> int:
        """The address at which pieces of machine code stay as long as this, one after the other; they may be run once
        all is sealed."""
        size = sum(lines(len(piece)) for piece in pieces)
        if not self._code or self._code[-1].room < size:
            self._code.append(Code(max(size, _BLOCK)))
        self.size += size
        places = [self._code[-1].put(piece) for piece in pieces]
        return places[0]

    def seal(self) -> None:
        """Make the code executable; no more can be added."""
        for code in self._code:
            code.seal()


def give_back() -> None:
    """Give memory that was freed back to the system, where its library keeps it otherwise, as glibc does."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    for function in (libc.mprotect, libc.madvise):
        function.argtypes = [pointer, size, ctypes.c_int]
    libc.munmap.argtypes = [pointer, size]
    return libc
