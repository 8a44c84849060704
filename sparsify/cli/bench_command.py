"""The command `bench` and its options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparsify.cli.commands import Json, Set, app, print_json


@app.command()
def bench(
    sources: Annotated[list[str], typer.Argument(help="Model files, run folders or recipes.")],
    runtime: Annotated[list[str] | None, typer.Option(help="Time this runtime only; may be repeated.")] = None,
    batch: Annotated[str, typer.Option(help="Samples a call; several as 1,16.")] = "1",
    threads: Annotated[str | None, typer.Option(help="CPU threads [default: all cores]; several as 1,2.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns that each runtime gets.")] = 9,
    launches: Annotated[int, typer.Option(help="Processes over which a runtime's turns are spread.")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of a turn.")] = 0.25,
    sparsity: Annotated[
        str | None, typer.Option(help="Sparsity of recipes, freshly masked; several as 0,0.5,0.9 are a sweep.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="After these, begin no further model, sparsity, batch or number of threads.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also time layers, in runtimes that tell.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show what our engine runs instead of timing.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Set two reports, OLD.json NEW.json, side by side instead of timing.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write all figures as comma-separated values.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with charts, with layers' times.")] = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Time models in every installed runtime, each beside its dense twin; outputs are compared first."""
    from sparsify.cli import benching

    options: dict[str, Any] = {
        "batch": benching.numbers(batch, "--batch"),
        "threads": benching.numbers(threads, "--threads") if threads else None,
        "sparsities": benching.numbers(sparsity, "--sparsity", float) if sparsity else (),
        "changes": set or [],
    }
    if compare:
        found = benching.compare_files(sources)
        if json:
            print_json(dataclasses.asdict(found))
        else:
            Console(highlight=False).print(benching.changes_table(found))
        return
    if explain:
        tables = benching.explain_sources(sources, options)
        if json:
            print_json({name: [dataclasses.asdict(row) for row in table.rows] for name, table in tables.items()})
        else:
            typer.echo("\n\n".join(f"{name}\n{table}" for name, table in tables.items()))
        return
    options |= {"rounds": rounds, "launches": launches, "seconds": seconds, "minutes": minutes}
    options |= {"layers": layers or html is not None}
    report, whole = benching.benchmark_live(sources, runtime, options, csv, html)
    if json:
        print_json(dataclasses.asdict(report))
    else:
        Console(highlight=False).print(benching.bench_table(report, layers))
    if not whole:
        raise KeyboardInterrupt
    benching.refuse_wrong(report)
