"""Parts by file name: a method, distribution, architecture, data set, format or runtime is one file.

`names("methods")` lists the files of `sparsify/methods/`; `load("methods", "rigl")` imports one of them.
No list of names is kept anywhere: a new file is found by being there.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from sparsify.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:  # an environment that only runs models has no pydantic
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T")

PACKAGE = Path(__file__).parent


def names(folder: str) -> list[str]:
    """Names of the parts in `sparsify/<folder>/` ("topology/distributions" and the like), sorted."""
    found = pkgutil.iter_modules([str(PACKAGE / folder)])
    return sorted(module.name for module in found if not module.name.startswith("_"))


def find(folder: str, name: str) -> str:
    """The part's file name from whatever a user typed: "RigL" and "erdos-renyi" are accepted.

    Raises UnknownNameError, with the nearest names, where there is no such file.
    """
    known, plain = names(folder), canonical(name)
    if plain not in known:
        what = folder.rsplit("/", 1)[-1].removesuffix("s")
        raise UnknownNameError(unknown("data set" if what == "data" else what, name, known))
    return plain


def load(folder: str, name: str) -> ModuleType:
    """Import the part `name` of `folder`. Raises UnknownNameError where there is no such file."""
    return importlib.import_module(f"sparsify.{folder.replace('/', '.')}.{find(folder, name)}")


def load_class(folder: str, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` that the part `name` of `folder` defines."""
    module = load(folder, name)
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, base) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, not {len(found)}")
    return found[0]


def canonical(name: str) -> str:
    """A name as files and classes are called: lower case, no dashes."""
    return name.strip().lower().replace("-", "_")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names closest in spelling to `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest ones that are."""
    known = sorted(known)
    close = nearest(name, known)
    hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"There is no {what} called '{name}'. {hint}Known: {', '.join(known) or 'none'}."


def configure(factory: Callable[..., T], section: str, options: Mapping[str, Any], **given: Any) -> T:
    """Call `factory`, a function or a dataclass, with a recipe section's options, types checked.

    `given` are the arguments that the program itself supplies. Raises RecipeError that names the key.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, validate_call

    parameters = inspect.signature(factory).parameters
    settable = [name for name in parameters if name not in given]
    for key in options:
        if key not in settable:
            raise RecipeError(unknown(f"key in [{section}]", key, settable))
    try:
        if is_dataclass(factory):
            made: T = TypeAdapter(factory).validate_python({**given, **options})  # type: ignore[assignment]
            return made
        if not parameters:  # nothing to check, and pydantic checks no plain classes
            return factory()
        return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(factory)(**given, **options)
    except ValidationError as error:
        raise RecipeError(explain(error, section)) from None
    except ValueError as error:
        raise RecipeError(f"[{section}]: {error}") from None


def explain(error: ValidationError, section: str = "") -> str:
    """pydantic's findings as one line a key."""
    return "\n".join(_finding(detail, section) for detail in error.errors())


def _finding(detail: ErrorDetails, section: str) -> str:
    path = ".".join(str(part) for part in (section, *detail["loc"]) if part != "")
    if detail["type"] in ("missing", "missing_argument"):
        return f"The recipe lacks the key '{path}'."
    reason = detail["msg"].removeprefix("Value error, ").rstrip(".")
    if isinstance(detail["input"], Mapping):  # a whole section: the reason names the keys
        return f"[{path}]: {reason}."
    return f"'{path}' = {detail['input']!r} is not possible: {reason[:1].lower()}{reason[1:]}."
