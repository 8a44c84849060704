"""Memory for machine code, and arrays that begin on a cache line."""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref

import numpy as np

LINE = 64  # bytes
_HUGE = 2 << 20
_READ, _WRITE, _EXECUTE = 1, 2, 4
_MADV_HUGEPAGE = 14


def aligned(count: int, dtype: type = np.float32, fill: float = 0) -> np.ndarray:
    """An array [count] whose first element lies on a cache line."""
    size = np.dtype(dtype).itemsize
    raw: np.ndarray = np.full(count + LINE // size, fill, dtype)
    start = -raw.ctypes.data % LINE // size
    return raw[start : start + count]


def copied(array: np.ndarray) -> np.ndarray:
    """A flat copy that begins on a cache line."""
    copy = aligned(array.size, array.dtype.type)
    copy[:] = array.ravel()
    return copy


class Code:
    """Machine code in pages that are written first and made executable then, never both at once.

    Raises OSError where the system refuses executable memory.
    """

    def __init__(self, code: bytes) -> None:
        libc = _libc()
        # Large pages, where the system gives them: code of many megabytes otherwise misses in the TLB.
        self._length = -(-max(len(code), 1) // _HUGE) * _HUGE + _HUGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = libc.mmap(None, self._length, _READ | _WRITE, flags, -1, 0)
        if mapped in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "no memory for machine code")
        self._release = weakref.finalize(self, libc.munmap, mapped, self._length)
        self.address = -(-mapped // _HUGE) * _HUGE
        used = self._length - _HUGE
        if sys.platform == "linux" and len(code) > _HUGE // 4:
            libc.madvise(self.address, used, _MADV_HUGEPAGE)
        ctypes.memmove(self.address, code, len(code))
        if libc.mprotect(self.address, used, _READ | _EXECUTE) != 0:
            raise OSError(ctypes.get_errno(), "the system refuses executable memory")


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    for function in (libc.mprotect, libc.madvise):
        function.argtypes = [pointer, size, ctypes.c_int]
    libc.munmap.argtypes = [pointer, size]
    return libc
