"""Tables and bars for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparsify.bench.comparison import Comparison
from sparsify.interpolation import Landscape
from sparsify.report.inspection import Inspection, LayerRow
from sparsify.report.scores import format_score, plain_name, score_in_words

EIGHTHS = " ▏▎▍▌▋▊▉█"
EIGHTH_HEIGHTS = "▁▂▃▄▅▆▇█"
BAR = 6  # characters
WIDE = 88  # columns that the whole inspection needs
SHORT = {"erdos_renyi": "ER", "erdos_renyi_kernel": "ERK", "uniform": "unif."}


def bar(share: float, width: int = BAR) -> str:
    """A horizontal bar of `share` (0 to 1) of `width` characters, to an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def inspection_table(found: Inspection, width: int = WIDE) -> RenderableType:
    """Layers with their density as bars, the distributions beside it, and the totals.

    width: columns of the terminal; a narrow one does not show the bytes of each layer.
    """
    table = Table(title=f"{found.source}: {_headline(found)}", title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("layer", overflow="fold", min_width=12)
    table.add_column("shape", no_wrap=True)
    table.add_column("density", no_wrap=True)
    numbers = [SHORT.get(name, name) for name in _distributions(found)]
    numbers += ["nnz", "FLOPs", "bytes"] if width >= WIDE else ["nnz", "FLOPs"]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for layer in found.layers:
        table.add_row(*list(_layer_cells(layer, found))[: len(table.columns)])
    return Group(table, Text(_totals(found)))


def comparison_table(found: Comparison) -> RenderableType:
    """Methods with their mean score, its spread over seeds, and what they cost."""
    title = f"{found.recipe} at {found.sparsity:.2%} sparsity, equal {found.at_equal}, seeds {_list(found.seeds)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("method", no_wrap=True)
    for name in (plain_name(found.score), "lowest", "highest", "zeros", "steps", "train FLOPs", "infer FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        lowest, mean, highest, deviation = (
            "" if value is None else format_score(found.score, value)
            for value in (min(row.scores), row.mean, max(row.scores), row.deviation)
        )
        table.add_row(
            row.method,
            f"{mean} ±{deviation}" if deviation else mean,
            lowest,
            highest,
            f"{row.sparsity:.2%}",
            f"{row.steps:,}",
            human_count(round(row.training_flops)),
            human_count(row.inference_flops),
        )
    notes = f"Mean ± standard deviation over seeds; FLOPs as trained. Runs: {found.folder}"
    return Group(table, Text(notes))


def landscape_table(found: Landscape) -> RenderableType:
    """Paths with their barrier, their highest and mean loss, and the losses from start to end as a row of bars."""
    title = f"Training loss from {found.start} to {found.end}, mean of {found.samples:,} samples"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    table.add_column("path", no_wrap=True)
    for name in ("space", "barrier", "highest", "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("start to end", no_wrap=True)
    highest = max(loss for each in found.paths for loss in each.losses)
    for each in found.paths:
        row = "".join(EIGHTH_HEIGHTS[min(7, int(8 * loss / highest))] for loss in each.losses)
        numbers = (each.barrier, max(each.losses), sum(each.losses) / len(each.losses))
        table.add_row(each.curve, each.space or "both", *(f"{number:.4f}" for number in numbers), row)
    ends = found.paths[0].losses[0], found.paths[0].losses[-1]
    notes = f"Loss at the ends {ends[0]:.4f} and {ends[1]:.4f}. Barrier: the most above the straight line between them."
    return Group(table, Text(notes))


def human_count(count: int) -> str:
    """Three digits and a unit of 1000: 1.23M. 1 MB is 1,000,000 bytes, as in the paper."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"
    return str(count)


def _headline(found: Inspection) -> str:
    facts = found.facts
    if "method" not in facts:
        return f"written by {facts['origin']}"
    network = f"{facts['model']['name']} for {facts['data']}"
    return f"{network}, {facts['origin']}, {facts['method']}, {facts['distribution']}"


def _rules(found: Inspection) -> list[str]:
    """What the distribution did not decide, in words."""
    dense = sum(not layer.sparse for layer in found.layers)
    own = [layer for layer in found.layers if layer.own is not None]
    words = {True: "the others make up for it", False: "beside the budget"}
    lines = [f"{layer.name}: a sparsity of {layer.own:.2%} of its own, {words[layer.inside]}." for layer in own]
    if any(layer.matrices > 1 for layer in found.layers):
        lines.append("/n: n matrices, each with connections of its own.")
    if dense:
        lines.append(f"Dense by type or rule, and not counted in the sparsity: {dense} of {len(found.layers)}.")
    return lines


def _distributions(found: Inspection) -> list[str]:
    return list(found.layers[0].densities) if found.layers else []


def _layer_cells(layer: LayerRow, found: Inspection) -> Iterable[str]:
    yield layer.name.removesuffix(".weight")
    yield "x".join(map(str, layer.shape)) + (f" /{layer.matrices}" if layer.matrices > 1 else "")
    yield f"{bar(layer.density)} {layer.density:6.1%}"
    for name in _distributions(found):
        yield f"{layer.densities[name]:.1%}"
    yield human_count(layer.nonzeros)
    yield human_count(layer.flops) if layer.flops is not None else "?"
    yield human_count(layer.bytes)


def _totals(found: Inspection) -> str:
    lines = [
        *_rules(found),
        f"Sparsity {found.sparsity:.4%}: {found.nonzeros:,} of {found.weights:,} weights, "
        f"{human_count(found.bytes)}B instead of {human_count(found.dense_bytes)}B.",
    ]
    if found.flops is not None and found.dense_flops:
        others = ", ".join(
            f"{SHORT.get(name, name)} {flops / found.dense_flops:.3f}x"
            for name, flops in found.distribution_flops.items()
        )
        lines.append(
            f"FLOPs of one sample: {human_count(found.flops)}, {found.flops / found.dense_flops:.3f}x of the dense "
            f"network's {human_count(found.dense_flops)} (at this sparsity: {others})."
        )
    if found.plan is not None:
        lines.append(
            f"Training by {found.facts['method']}: {human_count(round(found.plan.training_flops))} FLOPs in "
            f"{found.plan.steps:,} steps of {found.plan.batch_size} samples, {found.plan.ratio:.3f}x of dense "
            f"training's {human_count(round(found.plan.dense_training_flops))}."
        )
    lines.append("Stored as " + ", ".join(f"{name} {human_count(size)}B" for name, size in found.sizes.items()) + ".")
    results = found.facts.get("results", {})
    if "test_accuracy" in results:
        lines.append(f"Test {score_in_words(results)} after {results['steps']:,} steps.")
    lines.append(f"Mask digest {found.mask_digest}")
    return "\n".join(lines)


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
