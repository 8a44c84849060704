"""The folder of a run: recipe, metrics, checkpoint, and the model when training is over."""

from __future__ import annotations

import shlex
from pathlib import Path

from sparsify.errors import CheckpointError
from sparsify.files import write_bytes
from sparsify.recipe import Recipe, load_recipe

RECIPE, CHECKPOINT, MODEL, CONFIG = "recipe.toml", "checkpoint.pt", "model.safetensors", "config.json"
PACKED = "model.sparse.safetensors"  # in the place of MODEL where training was sparse


def default_folder(recipe: Recipe) -> Path:
    """runs/NAME-METHOD-SPARSITY-seedN, sparsity in percent."""
    topology = recipe.topology
    return Path("runs") / f"{recipe.name}-{topology.method}-{topology.sparsity * 100:g}-seed{recipe.training.seed}"


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def model_file(folder: Path) -> Path:
    """The model of a run, which stands there when training is over."""
    packed = folder / PACKED
    return packed if packed.is_file() else folder / MODEL


def create(folder: Path, recipe: Recipe) -> None:
    """Make the folder of a new run. Raises CheckpointError where something stands there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and is not empty. To continue the run in it: {resume_command(folder)}. "
            f"To start anew, name another folder with --out, or delete this one."
        )
    write_bytes(folder / RECIPE, recipe.to_toml().encode())


def reopen(folder: Path, recipe: Recipe | None) -> Recipe:
    """The recipe of the run in the folder. Raises CheckpointError where `recipe` is another one."""
    if not is_run(folder):
        raise CheckpointError(
            f"There is no run in {folder} to resume: it has no {RECIPE}. Check --out, or leave --resume away."
        )
    stored = load_recipe(folder / RECIPE)
    if recipe is not None and recipe != stored:
        changed = "; ".join(_differences(recipe.model_dump(), stored.model_dump()))
        raise CheckpointError(
            f"The run in {folder} was started with another recipe: {changed}. A run is resumed as it was "
            f"started: {resume_command(folder)}. For a run with other settings name another folder with --out."
        )
    return stored


def resume_command(folder: Path) -> str:
    return f"sparsify train --resume --out {shlex.quote(str(folder))}"


def _differences(given: object, stored: object, path: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(stored, dict):
        found = []
        for key in sorted(given.keys() | stored.keys()):
            found += _differences(given.get(key), stored.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if given == stored else [f"{path} is {stored!r} there and {given!r} now"]
