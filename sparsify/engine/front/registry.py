"""The one table of ONNX operators that the front can import."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache

from sparsify.engine.front import operators
from sparsify.engine.front.builder import Builder
from sparsify.engine.front.graph import Node

Importer = Callable[[Builder, Node], None]
"""Emits a node's operations. Raises Unsupported for what the grammar lacks, ValueError for nonsense."""

_IMPORTERS: dict[str, Importer] = {}


def importer(*names: str) -> Callable[[Importer], Importer]:
    """Register a function as importer of ONNX operators."""

    def register(function: Importer) -> Importer:
        for name in names:
            if _IMPORTERS.setdefault(name, function) is not function:
                raise TypeError(f"two importers for {name}")
        return function

    return register


@cache
def importers() -> Mapping[str, Importer]:
    """Importers by ONNX operator name, those of every file in `operators/`."""
    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")
    return _IMPORTERS
