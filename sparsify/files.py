"""Writing files so that nothing is lost: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsify.errors import SparsifyError


class DiskError(SparsifyError):
    """A file could not be written; what stood under its name before still stands."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends without an error.

    Until the rename the old file stays as it was; after an error the temporary file is gone.
    Raises DiskError where the disk is full or the folder cannot be written.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        partial.chmod(0o666 & ~_umask())
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise DiskError(_explain(error, path)) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`; what is there afterwards moves up.

    For files that name one another. The one at `path` moves last, so it never names one that is not there.
    After an error nothing has moved. Raises DiskError as `replacing` does.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
            yield Path(folder) / path.name
            written = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
            for file in written:
                file.chmod(0o666 & ~_umask())
                _sync(file)
            for file in written:
                file.replace(path.with_name(file.name))
            _sync(path.parent)
    except OSError as error:
        raise DiskError(_explain(error, path)) from error


def has_space(path: Path, size: int) -> bool:
    """Whether `size` bytes fit on the disk of `path`."""
    return shutil.disk_usage(_standing(path)).free >= size


def require_space(path: Path, size: int) -> None:
    """Raise DiskError, before anything is written, where `size` bytes do not fit on the disk of `path`."""
    if not has_space(path, size):
        raise DiskError(
            f"{path} would take {size:,} bytes, more than are free on the disk that holds {_standing(path)}. Nothing "
            f"was written. Free some space or name a path on another disk."
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` under `path`, all of it or nothing."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Put `value` under `path` as indented JSON, all of it or nothing."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_with(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Let `writer` fill an open file that takes `path`'s place when it is complete."""
    with replacing(path) as partial, partial.open("wb") as file:
        writer(file)


def _standing(path: Path) -> Path:
    """The nearest folder above `path` that exists already."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: {path} could not be written. What stood there before is unchanged. "
            f"Free some space on the disk that holds {path.parent} and run the command again."
        )
    return (
        f"{path} could not be written ({error.strerror or error}). What stood there before is unchanged. "
        f"Check that {path.parent} is a folder that you may write to."
    )
