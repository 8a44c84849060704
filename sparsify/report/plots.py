"""Pictures of an inspection and of a landscape."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsify.errors import SparsifyError
from sparsify.files import replacing
from sparsify.interpolation import Landscape
from sparsify.report.inspection import Inspection
from sparsify.report.tables import SHORT

SUFFIXES = (".svg", ".png", ".pdf")


def plot_inspection(found: Inspection, path: Path) -> None:
    """Density of each layer as bars, with what every distribution would give as marks.

    Raises SparsifyError where matplotlib is missing or the suffix is none of .svg, .png and .pdf.
    """
    with figure_in(path, figsize=(9, 1.6 + 0.28 * len(found.layers))) as (figure, axes):
        rows = range(len(found.layers))
        axes.barh(rows, [layer.density for layer in found.layers], color="#4c78a8", label="this model")
        for (name, colour), marker in zip(_colours(found), "|xd+", strict=False):
            shares = [layer.densities[name] for layer in found.layers]
            axes.scatter(shares, rows, marker=marker, color=colour, zorder=3, label=SHORT.get(name, name))
        axes.set_yticks(rows, [f"{layer.name}  {'×'.join(map(str, layer.shape))}" for layer in found.layers])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("density (share of weights that exist)")
        axes.set_title(f"{found.source}: sparsity {found.sparsity:.2%}", loc="left")
        axes.margins(y=0.01)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)


def plot_landscape(found: Landscape, path: Path) -> None:
    """The training loss along each path, on a logarithmic scale; dashed in the full space.

    Raises SparsifyError as `plot_inspection` does.
    """
    colours = {"line": "#4c78a8", "quadratic": "#f58518", "cubic": "#54a24b"}
    with figure_in(path, figsize=(7, 4.2)) as (figure, axes):
        for each in found.paths:
            label = each.curve if each.space is None else f"{each.curve}, {each.space} space"
            style = "--" if each.space == "full" else "-"
            axes.plot(found.positions, each.losses, style, color=colours[each.curve], label=label, marker=".")
        axes.set_yscale("log")
        axes.set_xlabel(f"from {found.start} (0) to {found.end} (1)")
        axes.set_ylabel("training loss (nats)")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)


def check_suffix(path: Path) -> None:
    """Raises SparsifyError where a picture cannot be drawn into that file."""
    if path.suffix not in SUFFIXES:
        raise SparsifyError(f"{path} must end in one of {', '.join(SUFFIXES)}. Rename it.")
    if importlib.util.find_spec("matplotlib") is None:
        raise SparsifyError("Plots need matplotlib, which is not installed: pip install 'sparsify-rigl[plot]'.")


@contextmanager
def figure_in(path: Path, figsize: tuple[float, float]) -> Iterator[tuple[Any, Any]]:
    """An empty figure and its axes, written to the file when the block ends."""
    check_suffix(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "sparsify"}):  # the same picture gives the same bytes
        figure, axes = pyplot.subplots(figsize=figsize, layout="constrained")
        yield figure, axes
        axes.spines[["top", "right"]].set_visible(False)
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        with replacing(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=150, metadata=metadata)
        pyplot.close(figure)


def _colours(found: Inspection) -> list[tuple[str, str]]:
    names = list(found.layers[0].densities) if found.layers else []
    return list(zip(names, ("#e45756", "#f58518", "#54a24b", "#b279a2"), strict=False))
