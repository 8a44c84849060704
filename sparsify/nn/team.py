"""Threads for native functions: torch's own OpenMP team, so that two teams never compete for the cores.

OpenMP's threads go on spinning for milliseconds after each operation of torch. Threads of ours would share the cores
with them; measured, that doubles the time of a training step. Where torch was built without GNU OpenMP, or
it cannot be found, the caller's thread does all the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from sparsify.engine.library import Library

_PARALLEL = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def call(library: Library, name: str, pieces: int, buffers: Sequence[int], constants: int) -> None:
    """Share the pieces of a native function out over torch's threads. buffers: addresses, which it gets as an array."""
    arguments = (ctypes.c_int64 * len(buffers))(*buffers)
    task = (ctypes.c_int64 * 5)(0, pieces, library.address(name), ctypes.addressof(arguments), constants)
    run(library.address("sparsify_share"), ctypes.addressof(task), min(pieces, torch.get_num_threads()))


def run(share: int, task: int, threads: int) -> None:
    """Call the native function at `share` with `task` in each of `threads` threads; return when all are done."""
    parallel = _parallel() if threads > 1 else None
    if parallel is None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(share)(task)
    else:
        parallel(share, task, threads, 0)


@cache
def _parallel() -> Callable[..., None] | None:
    """GOMP_parallel of the library that torch has loaded."""
    for folder in (Path(torch.__file__).parent / "lib", Path(torch.__file__).parent.parent / "torch.libs"):
        for path in sorted(folder.glob("libgomp*.so*")):
            try:
                function = ctypes.CDLL(str(path)).GOMP_parallel
            except (OSError, AttributeError):
                continue
            function.argtypes, function.restype = _PARALLEL, None
            found: Callable[..., None] = function
            return found
    return None
