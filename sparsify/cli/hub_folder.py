"""`sparsify export --folder` and `--push-to-hub`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sparsify.cli.progress import folder_with_progress
from sparsify.errors import FormatError


def write_folder(
    source: str,
    format: str | None,
    out: Path | None,
    force: bool,
    changes: Sequence[str],
    options: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Write the folder, say so unless `quiet`, and return what `--json` prints."""
    if format not in (None, "safetensors"):
        raise FormatError(f"A folder for Hugging Face tools holds safetensors, not {format}. Leave --format away.")
    written = folder_with_progress(source, out, force, changes, options, quiet)
    console = Console(highlight=False, soft_wrap=True, quiet=quiet)
    for name, size in written.files.items():
        console.print(f"Wrote {written.path / name}: {size:,} bytes")
    console.print(f"Mask digest {written.digest}")
    if written.url is not None:
        console.print(f"Uploaded to {written.url}")
    return {**dataclasses.asdict(written), "path": str(written.path)}
