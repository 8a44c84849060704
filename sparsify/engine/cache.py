"""Compiled code on disk, by the digest of what it was compiled from.

The folder is `$XDG_CACHE_HOME/sparsify` or `~/.cache/sparsify`. What lies in it is executed, so it is used
only if this user owns it and nobody else can write to it. A file begins with the digest of the rest: a
damaged one is compiled anew. Where there are many, those go that nobody used for longest. Whatever goes wrong
here costs time, never a result.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST = 32  # bytes
_MOST = 256  # files: some targets of some releases


def folder() -> Path | None:
    """The cache folder, made if need be; None where there is none that can be trusted."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = base / "sparsify"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.lstat()
    except (OSError, RuntimeError):
        return None
    return path if stat.S_ISDIR(state.st_mode) and _private(state) else None


def _private(state: os.stat_result) -> bool:
    if not hasattr(os, "getuid"):
        return False
    return state.st_uid == os.getuid() and not state.st_mode & 0o077


def fetch(key: str) -> bytes | None:
    """What was kept under `key`; None where there is nothing, or nothing sound."""
    place = folder()
    if place is None:
        return None
    try:
        with (place / key).open("rb") as file:
            if not _private(os.fstat(file.fileno())):
                return None
            data = file.read()
        os.utime(place / key)
    except OSError:
        return None
    digest, content = data[:_DIGEST], data[_DIGEST:]
    return content if hashlib.sha256(key.encode() + content).digest() == digest else None


def keep(key: str, content: bytes) -> None:
    """Keep `content` under `key`, all of it or nothing."""
    place = folder()
    if place is None:
        return
    try:
        handle, name = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(key.encode() + content).digest() + content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(place / key)
            _drop_unused(place)
        except OSError:
            Path(name).unlink(missing_ok=True)
    except OSError:
        return


def _drop_unused(place: Path) -> None:
    """Remove what nobody used for longest where there is too much. Who reads it at the moment is not disturbed."""
    kept = sorted(place.iterdir(), key=lambda path: path.lstat().st_mtime)
    for path in kept[:-_MOST]:
        path.unlink(missing_ok=True)
