"""Code of the user's own by reference, "package.module:function", importable from the working directory.

A reference is followed where the user gave it: on the command line, in a call, in a recipe, or in the folder of a run.
It is never followed because a model file says so: files are data, and reading one runs no code of its author.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsify.errors import RecipeError
from sparsify.registry import nearest


def is_reference(name: str) -> bool:
    """Whether a name means code of the user's own, and not a part of this package."""
    return ":" in name


def import_reference(reference: str) -> Callable[..., Any]:
    """The function that a reference means. Raises RecipeError where it cannot be imported."""
    path, _, name = reference.partition(":")
    if not path:
        raise RecipeError(
            f"This run was started with '{name}', an object that was given to the call and cannot be found again. "
            f"Give it again in the same call, or train by reference, as package.module:function."
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{reference} cannot be imported: there is no module '{error.name}' in {here} or among the installed "
            f"packages. Start from the folder that holds it, and name it as package.module:function."
        ) from None
    except Exception as error:  # whatever the module does when it is imported
        raise RecipeError(f"{reference} cannot be imported: {type(error).__name__}: {error}. Mend {path}.") from error
    finally:
        sys.path.remove(here)
    found = getattr(module, name, None)
    if not callable(found):
        close = nearest(name, [known for known in vars(module) if not known.startswith("_")])
        hint = f"Did you mean {' or '.join(close)}?" if close else "Look at its spelling."
        raise RecipeError(f"{path} has no function '{name}'. {hint}")
    function: Callable[..., Any] = found
    return function
