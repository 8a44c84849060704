"""Progress bars for the commands that take long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sparsify.bench.comparison import Comparison, compare
from sparsify.formats import Written
from sparsify.hub import Folder, export_folder
from sparsify.interpolation import Landscape, landscape
from sparsify.recipe import Recipe
from sparsify.report.scores import score_in_words
from sparsify.sources import export
from sparsify.training.distributed import speaks
from sparsify.training.loop import Progress as Step
from sparsify.training.loop import Result, train
from sparsify.training.run_folder import model_file


class _Bar:
    """A progress bar that appears with the first step, so that an error before it stands alone."""

    def __init__(self, *columns: ProgressColumn, console: Console, quiet: bool) -> None:
        hidden = quiet or not console.is_terminal
        self._progress = Progress(*columns, console=console, disable=hidden, transient=True)
        self._task = self._progress.add_task("", total=None)

    def show(self, done: int, total: int, description: str) -> None:
        self._progress.start()
        self._progress.update(self._task, completed=done, total=total, description=description)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()


def train_with_progress(recipe: Recipe | None, out: Path | None, options: dict[str, Any], quiet: bool) -> Result:
    """`train` with a live line: step, time, loss, accuracy or bits per character, sparsity, drop fraction."""
    quiet = quiet or not speaks()
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (BarColumn(24), MofNCompleteColumn(), *times, TextColumn("{task.description}"))
    score, printed = "", 0

    with _Bar(*columns, console=console, quiet=quiet) as bar:

        def watch(step: Step) -> None:
            nonlocal score, printed
            if "test_accuracy" in step.line:
                score = score_in_words(step.line)
            description = _describe(step.line, score)
            bar.show(step.step, step.steps, description)
            evaluated = "test_accuracy" in step.line and step.line["step"] > printed
            if evaluated and not console.is_terminal:
                printed = step.step
                console.print(f"step {step.step} of {step.steps}  {description}")

        result = train(recipe, out, **options, watch=watch)
    line = result.line
    console.print(
        f"Test {score_in_words(line)} at {line['sparsity']:.2%} sparsity after {line['step']:,} steps "
        f"and {line['updates']} mask updates. Model: {model_file(result.folder)}"
    )
    found = result.times.summary() if result.times else {}
    if "update_share" in found:
        step, update, behind = (found.get(f"{kind}step_seconds", 0.0) for kind in ("", "update_", "next_"))
        further = f" and the one behind it {behind * 1e3:.3g} ms" if behind else ""
        console.print(
            f"A step took {step * 1e3:.3g} ms, one that updates the masks {update * 1e3:.3g} ms{further}; "
            f"updates were {found['update_share']:.1%} of the time."
        )
    return result


def compare_with_progress(recipe: Recipe, options: dict[str, Any], quiet: bool) -> Comparison:
    """`compare` with a bar over the steps of the run that is trained."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    with _Bar(*columns, console=console, quiet=quiet) as bar:

        def watch(method: str, seed: int, step: int, steps: int) -> None:
            bar.show(step, steps, f"{method}, seed {seed}")

        return compare(recipe, watch=watch, **options)


def export_with_progress(
    source: str,
    format: str | None,
    out: Path | None,
    force: bool,
    changes: Sequence[str],
    options: dict[str, Any],
    quiet: bool,
) -> Written:
    """`export` with a bar over the source's bytes, where the format counts them."""
    columns = (BarColumn(24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _Bar(*columns, console=Console(), quiet=quiet) as bar:

        def watch(done: int, total: int) -> None:
            bar.show(done, total, "bytes")

        return export(source, format, out, force=force, changes=changes, watch=watch, **options)


def folder_with_progress(
    source: str, out: Path | None, force: bool, changes: Sequence[str], options: dict[str, Any], quiet: bool
) -> Folder:
    """`export_folder` with a bar over the source's bytes. out: by default the source's name, here, with "-hub"."""
    columns = (BarColumn(24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _Bar(*columns, console=Console(), quiet=quiet) as bar:

        def watch(done: int, total: int) -> None:
            bar.show(done, total, "bytes")

        folder = out or Path(f"{Path(source).stem}-hub")
        return export_folder(source, folder, force=force, changes=changes, watch=watch, **options)


def landscape_with_progress(start: str, end: str, options: dict[str, Any], quiet: bool) -> Landscape:
    """`landscape` with a bar over fitting steps and places."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with _Bar(*columns, console=Console(), quiet=quiet) as bar:
        return landscape(start, end, watch=bar.show, **options)


def _describe(line: dict[str, Any], score: str) -> str:
    if not line:
        return ""
    parts = [f"loss {line['loss']:.4f}", score, f"sparsity {line['sparsity']:.1%}"]
    if line["drop_fraction"]:
        parts.append(f"drop {line['drop_fraction']:.2f}")
    return "  ".join(part for part in parts if part)
