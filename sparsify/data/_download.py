"""Fetching published files with checksums."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pooch
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sparsify.errors import DataError


class _Bar:
    """pooch's progress interface drawn by rich."""

    def __init__(self, label: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, transient=True)
        self.task = self.progress.add_task(label, total=None)
        self.progress.start()

    @property
    def total(self) -> float | None:
        return self.progress.tasks[self.task].total

    @total.setter
    def total(self, value: float) -> None:
        self.progress.update(self.task, total=value)

    def update(self, count: int) -> None:
        self.progress.advance(self.task, count)

    def reset(self) -> None:
        self.progress.reset(self.task, total=self.total)

    def close(self) -> None:
        self.progress.stop()


def find_or_fetch(folder: Path, address: str, files: Mapping[str, str]) -> dict[str, Path]:
    """Where each file stands in `folder`, gzipped or not; missing ones come from `address`, MD5 checked.

    files: MD5 by file name as published. Raises DataError that lists the files if they cannot be had.
    """
    return {name: _standing(folder, name) or _fetch(folder, address, name, files) for name in files}


def fetch_archive(folder: Path, address: str, name: str, checksum: str, processor: Any) -> None:
    """Download the archive `name` and let pooch's `processor` unpack it, so that `folder` is there.

    checksum: as "md5:..." or "sha256:...".
    """
    with tempfile.TemporaryDirectory(prefix="sparsify-") as temporary:
        _retrieve(folder, address, name, checksum, Path(temporary), processor, contents=[folder.name])


def _standing(folder: Path, name: str) -> Path | None:
    plain = folder / name.removesuffix(".gz")
    return next((path for path in (plain, folder / name) if path.is_file()), None)


def _fetch(folder: Path, address: str, name: str, files: Mapping[str, str]) -> Path:
    return _retrieve(folder, address, name, f"md5:{files[name]}", folder, None, contents=list(files))


def _retrieve(
    folder: Path, address: str, name: str, checksum: str, into: Path, processor: Any, contents: list[str]
) -> Path:
    bar = _Bar(name)
    try:
        into.mkdir(parents=True, exist_ok=True)
        downloader = pooch.HTTPDownloader(progressbar=bar, timeout=30)
        pooch.retrieve(address + name, checksum, name, into, processor, downloader)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"{folder.name} is not in {folder.parent} and could not be downloaded from {address} "
            f"({type(error).__name__}). Go online and run the command again, or put these by hand into "
            f"{folder if contents != [folder.name] else folder.parent}: {', '.join(contents)}. "
            f"Another folder is chosen with --data or $SPARSIFY_DATA."
        ) from None
    finally:
        bar.close()
    return into / name
