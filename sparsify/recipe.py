"""Recipes: everything that decides a training run, as a TOML file that is checked before anything starts.

A recipe is found by name in `models/` (which ships with the package) or by path. Unknown keys, wrong types
and impossible values are one error that names the key and the nearest known one.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsify.errors import RecipeError, UnknownNameError
from sparsify.references import is_reference
from sparsify.registry import explain, find, unknown

DEFAULT = "lenet-300-100-digits"  # trains on data that ships with the package

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the recipe. Types are not converted: 0.1 is a number, "0.1" is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(Section):
    """A table that names a file of the package and holds that part's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Topology(Section):
    """Which weights exist, and when that changes (Evci et al. 2020, section 3)."""

    method: str = "rigl"
    distribution: str = "erdos_renyi_kernel"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9  # share of zeros among the sparse-able weights
    delta_t: Count = 100  # steps from one update of the masks to the next
    growth_batches: Count = 1  # an update looks at the dense gradients of that many batches: its own and those before
    alpha: Fraction = 0.3  # share of a layer's connections that the first updates replace
    t_end: Fraction = 0.75  # no updates after this share of training
    schedule: Literal["cosine", "constant", "linear", "inverse_power"] = "cosine"
    power: Positive = 3.0  # exponent of inverse_power
    masks_from: str | None = None  # a run or model file whose masks are the first ones; weights are initialised anew
    options: dict[str, Any] = {}  # the method's own, [topology.options]; see the fields of its class
    layers: dict[str, Any] = {}  # which are dense or have a sparsity of their own: see topology/rules.py

    @model_validator(mode="after")
    def _growth_looks_back_to_the_last_update(self) -> Self:
        if self.growth_batches > self.delta_t:
            raise ValueError(
                f"growth_batches = {self.growth_batches} is more than the delta_t = {self.delta_t} steps of an update"
            )
        return self

    @model_validator(mode="after")
    def _rules_are_whole(self) -> Self:
        for selector, rule in self.layers.items():
            _check_rule(selector, rule)
        return self


class Training(Section):
    """How long, how much at once, in which precision. Exactly one of epochs and steps is given."""

    epochs: Positive | None = None
    steps: Count | None = None
    multiplier: Positive = 1.0  # of the length; schedules and t_end stretch with it, delta_t does not
    batch_size: Count  # over all processes
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    loss_scale: Positive = 65536.0  # that float16 starts with; it adapts
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None  # decay of the moving average of weights that is kept
    compile: bool = False  # run the network through torch.compile
    channels_last: bool = False  # images and kernels with their channels last in memory: faster convolutions
    label_smoothing: Fraction = 0.0
    clip_norm: Positive | None = None  # of the gradient of all parameters, masked weights left out
    accumulate: Count = 1  # parts that a batch is computed in; gradients add up
    evaluate_every: Positive = 1.0  # epochs
    seed: Annotated[int, Field(ge=0)] = 0
    start_from: str | None = None  # a run or model file whose masks and weights are the first ones

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of training.epochs and training.steps")
        if self.batch_size % self.accumulate:
            raise ValueError("training.batch_size must be a multiple of training.accumulate")
        return self


class Optimizer(Section):
    """A torch.optim optimizer by its class name; keys that are left out keep torch's default."""

    name: str = "sgd"
    lr: Positive
    momentum: Fraction | None = None
    nesterov: bool | None = None
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] | None = None
    eps: Positive | None = None
    fused: bool | None = None
    weight_decay: NotNegative = 0.0  # of matrices and kernels; biases and norms are not decayed
    decoupled: bool = False  # the decay shrinks weights by lr * weight_decay and does not enter the gradient


class LearningRate(Section):
    """Factor on optimizer.lr over training; warm-up and milestones are shares of training, so they stretch."""

    schedule: Literal["constant", "step", "cosine"] = "constant"
    warmup: Fraction = 0.0
    milestones: list[Fraction] = []
    gamma: Positive = 0.1


class Recipe(Section):
    """One training run. `name` is the recipe's file name; model and data name files of the package."""

    name: str
    model: Part
    data: Part
    topology: Topology = Topology()
    training: Training
    optimizer: Optimizer
    learning_rate: LearningRate = LearningRate()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for folder, part in (("architectures", self.model), ("data", self.data)):
            if not is_reference(part.name):  # those are followed when they are needed, never for a file's sake
                find(folder, part.name)
        find("methods", self.topology.method)
        find("topology/distributions", self.topology.distribution)
        return self

    def steps(self, samples: int) -> int:
        """Optimizer steps of the whole run over a training set of `samples`."""
        settings = self.training
        if settings.steps is not None:
            return max(1, round(settings.multiplier * settings.steps))
        assert settings.epochs is not None
        return max(1, math.floor(settings.multiplier * settings.epochs * samples / settings.batch_size))

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _check_rule(selector: str, rule: Any) -> None:
    """Raises ValueError for a rule of [topology.layers] that says nothing, or not enough."""
    if rule in ("dense", "sparse"):
        return
    form = (
        f'{selector!r} must be "dense", "sparse", {{sparsity = 0.5, budget = "inside"}} (the others make up for it), '
        f'{{sparsity = 0.5, budget = "outside"}} (they do not) or {{parts = 3}}, and is {rule!r}'
    )
    known = {"sparsity", "budget", "parts"}
    if not isinstance(rule, Mapping) or not rule or rule.keys() - known or ("sparsity" in rule) != ("budget" in rule):
        raise ValueError(form)
    own, parts = rule.get("sparsity", 0.0), rule.get("parts", 1)
    if isinstance(own, bool) or not isinstance(own, (int, float)) or not 0 <= own < 1:
        raise ValueError(f"{selector!r}: sparsity = {own!r} must be a number from 0 to below 1")
    if rule.get("budget", "inside") not in ("inside", "outside"):
        raise ValueError(form)
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"{selector!r}: parts = {parts!r} must be a whole number of at least 1")


def folder() -> Path:
    """Where the recipes stand: inside an installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def load_recipe(source: str | Path | None = None, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    source: a recipe's name, a path to a TOML file, or None for the default.
    changes: "section.key=value" each, as in `--set`; values are TOML, bare words are strings.
    Raises RecipeError with every finding, one a line.
    """
    path = _path(DEFAULT if source is None else str(source))
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}. Mend the file at that place.") from None
    table.setdefault("name", path.stem)
    for change in changes:
        _apply(table, change)
    return parse_recipe(table)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """Check a recipe given as nested dictionaries. Raises RecipeError with every finding, one a line."""
    try:
        return Recipe.model_validate(dict(table))
    except ValidationError as error:
        extra = [unknown_key(detail["loc"]) for detail in error.errors() if detail["type"] == "extra_forbidden"]
        other = [detail for detail in error.errors() if detail["type"] != "extra_forbidden"]
        lines = extra + ([explain(ValidationError.from_exception_data("recipe", _lines(other)))] if other else [])
        raise RecipeError("\n".join(lines)) from None


def parse_topology(table: Mapping[str, Any]) -> Topology:
    """Check a table [topology] by itself. Raises RecipeError with every finding, one a line."""
    try:
        return Topology.model_validate(dict(table))
    except ValidationError as error:
        raise RecipeError(explain(error, "topology")) from None


def unknown_key(location: tuple[int | str, ...]) -> str:
    """The message for a key that the recipe does not have."""
    *sections, key = [str(part) for part in location]
    model: type[BaseModel] = Recipe
    for section in sections:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    where = f"key in [{'.'.join(sections)}]" if sections else "key or section in the recipe"
    return unknown(where, key, model.model_fields)


def _lines(details: Sequence[Any]) -> Any:
    kept = ("type", "loc", "input", "ctx")
    return [{key: detail[key] for key in kept if key in detail} for detail in details]


def _path(source: str) -> Path:
    if source.endswith(".toml"):
        path = Path(source)
        if not path.is_file():
            known = ", ".join(recipe_names())
            raise RecipeError(f"There is no recipe file {path}. Check the path, or name one of: {known}.")
        return path
    if source not in recipe_names():
        raise UnknownNameError(unknown("recipe", source, recipe_names()))
    return folder() / f"{source}.toml"


def _apply(table: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"'{change}' is not of the form section.key=value, such as optimizer.lr=0.05.")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"'{key}' cannot be set: '{section}' is a value and not a section.")
    if last in ("epochs", "steps") and sections == ["training"]:
        table.pop("epochs", None)
        table.pop("steps", None)
    table[last] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
