"""The commands and their options."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from sparsify import __version__
from sparsify.errors import RecipeError

app = typer.Typer(
    name="sparsify",
    help="Train neural networks sparse from scratch, export them, and measure what sparsity buys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, as optimizer.lr=0.05."),
]
Method = Annotated[str | None, typer.Option(help="How connections are chosen: a file of sparsify/methods/, as rigl.")]
Distribution = Annotated[str | None, typer.Option(help="uniform, erdos-renyi, erdos-renyi-kernel.")]
Sparsity = Annotated[float | None, typer.Option(help="Share of weights that are zero, 0 <= s < 1.")]
Seed = Annotated[int | None, typer.Option(help="Seed of initialisation, masks, data order and growth.")]
DataFolder = Annotated[Path | None, typer.Option(help="Folder of the data sets [default: $SPARSIFY_DATA or ~/data].")]
Source = Annotated[str, typer.Argument(help="A run folder, a model file, a checkpoint, or a recipe.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"sparsify {__version__}")
        raise typer.Exit


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name or TOML file; by default the embedded one.")
    ] = None,
    method: Method = None,
    distribution: Distribution = None,
    sparsity: Sparsity = None,
    epochs: Annotated[float | None, typer.Option(help="Length of training; schedules stretch with it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of training in optimizer steps.")] = None,
    seed: Seed = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    compute: Annotated[
        Literal["masked", "sparse"] | None,
        typer.Option(help="masked, or sparse: non-zeros only, on the CPU [default: as the checkpoint, or masked]."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="A function of yours that builds the network.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|MODULE:FUNCTION",
            help="Folder of the data sets [default: $SPARSIFY_DATA or ~/data], or a function that returns yours.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/RECIPE-METHOD-SPARSITY-seedN].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out from its checkpoint.")] = False,
    set: Set = None,
    json: Json = False,
) -> None:
    """Train a recipe's network sparse from scratch, or continue a run."""
    from sparsify.cli.progress import train_with_progress
    from sparsify.recipe import load_recipe
    from sparsify.training.distributed import speaks

    if epochs is not None and steps is not None:
        raise RecipeError("Give --epochs or --steps, not both.")
    changes = _changes(
        set,
        {
            "topology.method": method,
            "topology.distribution": distribution,
            "topology.sparsity": sparsity,
            "training.epochs": epochs,
            "training.steps": steps,
            "training.seed": seed,
        },
    )
    own = recipe is None and not changes and resume and out is not None
    chosen = None if own else load_recipe(recipe, changes)
    options = {"model": model, "data": data, "device": device, "resume": resume, "compute": compute}
    result = train_with_progress(chosen, out, options, quiet=json)
    if json and speaks():
        print_json({"folder": str(result.folder), **result.line, **(result.times.summary() if result.times else {})})


@app.command()
def compare(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name or TOML file; by default the embedded one.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, as rigl,set,static [default: all].")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, as 0,1,2.")] = "0,1,2",
    at_equal: Annotated[
        Literal["steps", "flops"], typer.Option(help="steps, or flops: the training FLOPs of the recipe's own method.")
    ] = "steps",
    distribution: Distribution = None,
    sparsity: Sparsity = None,
    epochs: Annotated[float | None, typer.Option(help="Length of training; schedules stretch with it.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    data: DataFolder = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs [default: runs/compare-RECIPE-AT].")] = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Train a recipe by several methods and seeds and compare them; an interrupted comparison goes on."""
    from sparsify.cli.progress import compare_with_progress
    from sparsify.recipe import load_recipe
    from sparsify.report.tables import comparison_table

    changes = _topology_changes(set, None, distribution, sparsity)
    chosen = load_recipe(recipe, [*changes, *_changes(None, {"training.epochs": epochs})])
    options = {
        "methods": _names(methods) if methods else None,
        "seeds": _numbers(seeds),
        "at_equal": at_equal,
        "out": out,
        "data": data,
        "device": device,
    }
    found = compare_with_progress(chosen, options, quiet=json)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        Console(highlight=False).print(comparison_table(found))


@app.command()
def inspect(
    source: Source,
    method: Method = None,
    distribution: Distribution = None,
    sparsity: Sparsity = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the densities into FILE.svg, .png or .pdf.")] = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Show where the weights of a recipe, a run or a model file are, and what they cost."""
    from sparsify.report.inspection import inspect as look
    from sparsify.report.plots import plot_inspection
    from sparsify.report.tables import inspection_table

    found = look(source, _topology_changes(set, method, distribution, sparsity))
    if plot is not None:
        plot_inspection(found, plot)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        console = Console(highlight=False)
        console.print(inspection_table(found, console.width))


@app.command()
def export(
    source: Source,
    format: Annotated[str | None, typer.Option(help="onnx or safetensors [default: by --out, else onnx].")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write [default: the source's name, here].")] = None,
    packed: Annotated[bool, typer.Option("--packed", help="safetensors: non-zeros and positions only.")] = False,
    encoding: Annotated[str | None, typer.Option(help="onnx: weights dense, packed or sparse-tensor.")] = None,
    values: Annotated[str | None, typer.Option(help="Stored weights as float32, float16 or bfloat16.")] = None,
    prune: Annotated[float | None, typer.Option(help="Magnitude-prune another program's model, as 0.9.")] = None,
    folder: Annotated[
        bool, typer.Option("--folder", help="A folder for Hugging Face tools: weights, config.json and a model card.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Write such a folder and upload it, as NAME/MODEL.")
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Cut dead neurons and channels away.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    method: Method = None,
    distribution: Distribution = None,
    sparsity: Sparsity = None,
    seed: Seed = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Write a run, or any program's checkpoint or ONNX file, as a model file, and prove it.

    A recipe gives a freshly initialised, masked model for benchmarks. Other programs' models are safetensors files,
    folders with an index of shards, torch checkpoints and ONNX files.
    """
    from sparsify.cli.progress import export_with_progress

    changes = _topology_changes(set, method, distribution, sparsity, seed)
    options = {"packed": packed, "encoding": encoding, "values": values, "prune": prune, "compact": compact}
    if folder or push_to_hub is not None:
        from sparsify.cli.hub_folder import write_folder

        given = {**options, "push_to_hub": push_to_hub}
        found = write_folder(source, format, out, force, changes, given, quiet=json)
        if json:
            print_json(found)
        return
    written = export_with_progress(source, format, out, force, changes, options, quiet=json)
    if json:
        print_json({**dataclasses.asdict(written), "path": str(written.path)})
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"Wrote {written.path}: {written.size:,} bytes, mask digest {written.digest}")
    if written.dense_size:
        console.print(f"The same weights dense: {written.dense_size:,} bytes")
    if written.compacted is not None:
        cut = written.compacted
        console.print(
            f"Cut away: {cut.channels:,} of {cut.all_channels:,} channels, {cut.weights:,} of {cut.all_weights:,} "
            f"weights, {cut.nonzeros:,} of them not zero"
        )
    if written.relative_error is not None:
        console.print(f"Checked in onnxruntime against the source: relative error {written.relative_error:.1e}")
    if written.folded:
        console.print(f"onnxruntime folds all {written.folded} encoded weights when it opens the file")


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX model with one input.")],
    input: Annotated[Path, typer.Option(help="NumPy file with the input, of the shape that the model wants.")],
    out: Annotated[Path | None, typer.Option(help="NumPy file for the first output.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: all cores].")] = None,
    json: Json = False,
) -> None:
    """Run a model in our sparse engine on an input of your own."""
    from sparsify.cli.running import run_model

    outputs = run_model(model, input, out, threads)
    if json:
        print_json(outputs)
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, output in outputs["outputs"].items():
        console.print(f"{name} {output['shape']}: {output['first']}", markup=False)
    if out is not None:
        console.print(f"Wrote {out}")


@app.command()
def landscape(
    start: Annotated[str, typer.Argument(help="A run or model file.")],
    end: Annotated[str, typer.Argument(help="Another of the same network and data set.")],
    curve: Annotated[str, typer.Option(help="Curves beside the line.")] = "quadratic,cubic",
    space: Annotated[str, typer.Option(help="sparse: where either end has connections; full.")] = "sparse,full",
    points: Annotated[int, typer.Option(help="Places on a path, ends included.")] = 21,
    steps: Annotated[int, typer.Option(help="Optimizer steps that fit a curve.")] = 1000,
    samples: Annotated[int, typer.Option(help="Training samples that a loss is a mean over.")] = 10_000,
    data: DataFolder = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses into FILE.svg, .png or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Measure the training loss on paths between two solutions: a line, and curves fitted to lower it."""
    from sparsify.cli.progress import landscape_with_progress
    from sparsify.report.plots import check_suffix, plot_landscape
    from sparsify.report.tables import landscape_table

    if plot is not None:
        check_suffix(plot)
    options = {"curves": _names(curve), "spaces": _names(space), "points": points, "steps": steps, "samples": samples}
    found = landscape_with_progress(start, end, {**options, "data": data}, quiet=json)
    if plot is not None:
        plot_landscape(found, plot)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        Console(highlight=False).print(landscape_table(found))


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _topology_changes(
    given: list[str] | None,
    method: str | None,
    distribution: str | None,
    sparsity: float | None,
    seed: int | None = None,
) -> list[str]:
    flags = {"topology.method": method, "topology.distribution": distribution, "topology.sparsity": sparsity}
    return _changes(given, {**flags, "training.seed": seed})


def _changes(given: list[str] | None, flags: dict[str, Any]) -> list[str]:
    """--set as it was given, then the plain flags, as "section.key=value"."""
    plain = [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]
    return [*(given or []), *plain]


def _numbers(text: str) -> list[int]:
    """ "0,1,2" as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds {text} is not a list of whole numbers, such as 0,1,2.") from None


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
