"""The oracle: a program run operation by operation in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsify.engine.numpy_ops import compute
from sparsify.engine.program import Program, reads, writes

Array = np.ndarray[Any, Any]


def interpret(program: Program, feeds: Mapping[str, Array], precision: type = np.float64) -> dict[str, Array]:
    """Outputs by name. All floating point is computed in `precision`; nothing is fast and nothing is clever.

    feeds: {input name: array of that input's shape}.
    """

    def exact(array: Array) -> Array:
        return array.astype(precision, copy=False) if array.dtype.kind == "f" else array

    arrays = {name: exact(array) for name, array in program.constants.items()}
    arrays |= {value.name: exact(np.asarray(feeds[value.name])) for value in program.inputs}
    last_read = {name: i for i, op in enumerate(program.operations) for name in reads(op)}
    for i, operation in enumerate(program.operations):
        names = reads(operation)
        results = [program.values[name] for name in writes(operation)]
        computed = compute(operation, [arrays[name] for name in names], results)
        arrays |= {value.name: exact(array) for value, array in zip(results, computed, strict=True)}
        for name in set(names):
            if last_read[name] == i and name not in program.outputs:
                del arrays[name]
    return {name: arrays[name] for name in program.outputs}
