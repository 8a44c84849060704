"""What a user can point at - a run, a recipe, a model file - and how it becomes a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from sparsify import architectures
from sparsify.data import data_info
from sparsify.errors import FormatError, RecipeError, UnknownNameError
from sparsify.formats import SparseModel, Written, load_format, read_model
from sparsify.recipe import Recipe, load_recipe, recipe_names
from sparsify.references import is_reference
from sparsify.registry import names, unknown
from sparsify.training import run_folder
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.compute import fitted, positions_of
from sparsify.training.loop import Result
from sparsify.training.snapshot import build_network, initial_snapshot, snapshot
from sparsify.training.sparse_network import build_sparse_network


def open_source(source: str | Path | Result, changes: Sequence[str] = (), scan: bool = False) -> SparseModel:
    """The model that a run folder, a model file, a recipe or a finished run stands for.

    A run that is not finished gives the state of its last checkpoint; a recipe gives a freshly initialised,
    masked network. changes: "section.key=value" each, for recipes only. scan: leave tensors in files, see `read_model`.
    Raises SparsifyError where there is no such thing or it is damaged.
    """
    if isinstance(source, Result):
        module, model = source.model, read_model(run_folder.model_file(source.folder), scan)
        return model if module is None else replace(model, build=lambda: deepcopy(module).cpu())
    path = Path(source)
    standing = path.is_dir() or (path.is_file() and path.suffix != ".toml")
    if standing and changes:
        raise RecipeError(f"{path} is fixed: settings can be changed for recipes only. Leave them away.")
    if run_folder.is_run(path):
        return _open_run(path, scan)
    if standing or path.suffix in _suffixes():
        return read_model(path, scan)
    try:
        return initial_snapshot(load_recipe(str(source), changes))
    except UnknownNameError as error:
        if str(source) in recipe_names():
            raise
        hint = unknown("run folder, model file or recipe", str(source), recipe_names())
        raise RecipeError(hint.replace("Known:", "Known recipes:")) from error


def export(
    source: str | Path | Result,
    format: str | None = None,
    out: str | Path | None = None,
    *,
    force: bool = False,
    changes: Sequence[str] = (),
    watch: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Written:
    """Write a source as a model file and prove it: read again, masks recounted, outputs compared.

    source: as in `open_source`, or what `train` returned, for networks that were given to it as objects.
    format: by default the one that `out`'s suffix names, else onnx. out: by default the source's name in the
    current folder. An existing file is replaced only with `force`. watch: called with (bytes done, bytes in all)
    where the format counts them. options: those of the format, such as packed=True for safetensors; for sources
    of other programs also prune=0.9. Raises SparsifyError; `out` is then as it was.
    """
    path = Path(out) if out is not None else None
    if format is None:
        by_suffix = {load_format(name).SUFFIX: name for name in names("formats")}
        format = by_suffix.get(path.suffix, "onnx") if path else "onnx"
    module = load_format(format)
    place = source.folder if isinstance(source, Result) else Path(source)
    path = path or _default_path(place, module.SUFFIX, bool(options.get("packed")))
    if path.suffix != module.SUFFIX:
        raise FormatError(f"{path} does not end in {module.SUFFIX}, as files of the format {format} do. Rename it.")
    if path.exists() and not force:
        raise FormatError(f"{path} exists. Give --force to replace it, or another name with --out.")
    file = _model_file(place)
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if watch is not None:
        given["watch"] = watch
    if file is not None and not changes and hasattr(module, "convert") and module.converts(file):
        converted: Written = module.convert(file, path, **_accepted(module.convert, given, format))
        return converted
    return _write(source, module, path, changes, given, format)


def _write(
    source: str | Path | Result, module: Any, path: Path, changes: Sequence[str], given: dict[str, Any], format: str
) -> Written:
    if "prune" in given:
        raise FormatError(
            f"--prune is for models of other programs, in a form that the format {format} can read. {source} gets its "
            f"sparsity in training: see --sparsity."
        )
    model = open_source(source, changes)
    if model.metadata is None:
        raise FormatError(
            f"{source} was not written by sparsify and does not say which network it holds, so it cannot be "
            f"exported as {format}. Its weights can be converted to safetensors; it can be inspected and, if it is "
            f"an ONNX file, benchmarked as it is."
        )
    written: Written = module.write(model, path, **_accepted(module.write, given, format))
    if written.compacted is None and written.digest != model.metadata.mask_digest:
        raise FormatError(f"The masks recounted from {path} are not the source's. This is a bug: please report it.")
    return written


def _accepted(function: Callable[..., Written], given: dict[str, Any], format: str) -> dict[str, Any]:
    """The options that a format's function takes. Raises FormatError for others; progress is simply not asked for."""
    known = [name for name, part in signature(function).parameters.items() if part.kind is Parameter.KEYWORD_ONLY]
    for name in given.keys() - {"watch", *known}:
        raise FormatError(unknown(f"option of the format {format}", f"--{name}", [f"--{option}" for option in known]))
    return {name: value for name, value in given.items() if name in known}


def _default_path(source: Path, suffix: str, packed: bool) -> Path:
    """The source's name in the current folder, with the suffix of what is written."""
    name = source.stem.removesuffix(".sparse") if source.is_file() else source.name
    return Path(f"{name}{'.sparse' if packed else ''}{suffix}")


def _model_file(path: Path) -> Path | None:
    """The file or folder that holds a source's model, or None where the model is made from a recipe or checkpoint."""
    if run_folder.is_run(path):
        path = run_folder.model_file(path)
    return path if path.exists() and path.suffix != ".toml" else None


def _open_run(folder: Path, scan: bool) -> SparseModel:
    file = run_folder.model_file(folder)
    if file.is_file():
        return _with_network(read_model(file, scan), load_recipe(folder / run_folder.RECIPE))
    recipe = load_recipe(folder / run_folder.RECIPE)
    info = data_info(recipe.data.name, recipe.data.options)
    checkpoint = folder / run_folder.CHECKPOINT
    if not checkpoint.is_file():
        return snapshot(*build_network(recipe, info), recipe, info, "initialised")
    content = read_checkpoint(checkpoint)
    model, layers, masks = (build_sparse_network if content.get("sparse") else build_network)(recipe, info)
    content = fitted(content, model, masks)
    model.load_state_dict(content["model"])
    masks = replace(masks, tensors=content["masks"], positions=positions_of(model))
    progress = {"steps": content["progress"]["step"], "updates": content["progress"]["updates"]}
    return snapshot(model, layers, masks, recipe, info, "in training", progress)


def _with_network(model: SparseModel, recipe: Recipe) -> SparseModel:
    """A run's model, with the user's own network if it is one: its folder is trusted, a model file is not."""
    if not is_reference(recipe.model.name) or model.metadata is None:
        return model
    network = model.metadata.network
    sizes = (tuple(network.input_shape), network.classes, network.vocabulary)
    return replace(model, build=lambda: architectures.build(recipe.model.name, recipe.model.options, *sizes))


def _suffixes() -> set[str]:
    return {load_format(name).SUFFIX for name in names("formats")}
