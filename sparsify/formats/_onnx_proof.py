"""Proof that an ONNX file does what its source does, and at no cost: it is run, and looked at after loading."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsify.errors import FormatError
from sparsify.formats._onnx_encode import node_prefix

TOLERANCE = 1e-4  # relative error of float32 outputs between runtimes that add in another order
LARGE = 1_500_000_000  # bytes of a model above which its optimized form needs external data too


def compare(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest relative error of outputs, as norms; inf where they differ in shape or kind."""
    errors = [0.0]
    for left, right in zip(expected, found, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return float("inf")
        if left.dtype.kind != "f":
            errors.append(0.0 if np.array_equal(left, right) else float("inf"))
        elif not np.array_equal(left, right, equal_nan=True):
            wide = left.astype(np.float64)
            error = np.linalg.norm(right - wide) / (np.linalg.norm(wide) + 1e-12)
            errors.append(float(error) if np.isfinite(error) else float("inf"))
    return max(errors)


def check_error(error: float, path: Path, against: str) -> None:
    """Raise FormatError where outputs differ by more than rounding explains."""
    if not error < TOLERANCE:
        raise FormatError(
            f"The outputs of {path} would differ from {against} by {error:.1e} (relative), more than {TOLERANCE:.0e} "
            f"allows. Nothing was written. This is a bug of an exporter or of onnxruntime: please report it with "
            f"the command."
        )


def run(path: Path, inputs: dict[str, np.ndarray] | None = None) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Outputs of a model in onnxruntime, and the inputs that they belong to; random ones if none are given."""
    session = open_session(path)
    if inputs is None:
        random = np.random.default_rng(0)
        inputs = {port.name: _sample(port, random) for port in session.get_inputs()}
    return session.run(None, inputs), inputs


def open_session(path: Path, optimized: Path | None = None) -> Any:
    """onnxruntime with what it does by default, quiet; `optimized` is where it leaves what it made of the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        # Folding is a basic optimization. Those above write operators that other tools cannot read.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_folded(path: Path, weights: Sequence[str]) -> int:
    """Count the encoded weights that onnxruntime turned into constants. Raises FormatError unless it is all."""
    if not weights:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "model.onnx"
        open_session(path, optimized)
        graph = onnx.load(optimized, load_external_data=False).graph
    left = {node.name for node in graph.node}
    computed = {output for node in graph.node for output in node.output}
    names = sorted(weights)
    prefixes = tuple(node_prefix(name) for name in names)
    decoding = [name for name in left if name.startswith(prefixes)]
    remaining = [name for name in names if name in computed]
    if decoding or remaining:
        raise FormatError(
            f"The onnxruntime that is installed does not fold the weights of {path} when it opens it ({len(remaining)} "
            f"of {len(names)} are left, such as {(remaining + decoding)[0]}), so each run would decode them. Nothing "
            f"was written. Use --encoding dense, or install another release of onnxruntime."
        )
    return len(names)


def _sample(port: Any, random: np.random.Generator) -> np.ndarray:
    """A random value for an input: sizes that are not fixed count as 2, integers are 0 or 1."""
    shape = [extent if isinstance(extent, int) and extent > 0 else 2 for extent in port.shape]
    kind = port.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64", "bool": "bool"}.get(kind, kind)
    if np.dtype(dtype).kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)
