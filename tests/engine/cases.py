"""Layers and small networks as Programs, and the comparison with the float64 oracle."""

from __future__ import annotations

import functools

import numpy as np

from sparsify.engine.compile import compile_program
from sparsify.engine.interpreter import interpret
from sparsify.engine.program import Convolution, Epilogue, Linear, Operation, Program, Value, reads, writes
from sparsify.engine.target import host, named

LEVELS = ["generic", "avx2", "avx512"]


@functools.cache
def levels() -> list[str]:
    """The targets that this machine can run."""
    return LEVELS[: LEVELS.index(host().level) + 1]


def target(level: str):
    return named(level)


def program(operations: list[Operation], shapes: dict[str, tuple[int, ...]], outputs: list[str]) -> Program:
    """A program of float32 values; what nothing writes is an input."""
    written = {name for op in operations for name in writes(op)}
    values = {name: Value(name, shape) for name, shape in shapes.items()}
    named_first = [name for op in operations for name in reads(op)]
    inputs = [values[name] for name in dict.fromkeys(named_first) if name not in written]
    return Program(tuple(inputs), tuple(outputs), tuple(operations), values)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> np.ndarray:
    """A float32 weight of about this density, some rows without any non-zero."""
    weight = rng.standard_normal(shape) * (rng.random(shape) < density)
    if density < 1:
        weight[rng.random(len(weight)) < 0.1] = 0
    return weight.astype(np.float32)


def convolution(
    rng: np.random.Generator, *, n: int = 1, c: int = 8, o: int = 8, size: tuple[int, int] = (9, 9),
    kernel: tuple[int, int] = (3, 3), stride: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (1, 1, 1, 1), groups: int = 1, density: float = 0.2,
    residual: bool = False, low: float = -np.inf, high: float = np.inf,
) -> Program | None:  # fmt: skip
    """A convolution by itself; None where it has no output."""
    top, left, bottom, right = padding
    before, after = (top, left), (bottom, right)
    out = [(size[i] + before[i] + after[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    if min(out) < 1:
        return None
    op = Convolution(
        "x", "y", sparse(rng, (o, c // groups, *kernel), density), rng.standard_normal(o).astype(np.float32),
        stride, padding, dilation, groups, Epilogue("r" if residual else None, low, high), "layer",
    )  # fmt: skip
    shapes = {"x": (n, c, *size), "y": (n, o, *out)} | ({"r": (n, o, *out)} if residual else {})
    return program([op], shapes, ["y"])


def linear(
    rng: np.random.Generator, *, leading: tuple[int, ...] = (1,), k: int = 20, o: int = 20,
    density: float = 0.2, residual: bool = False, low: float = -np.inf, high: float = np.inf,
) -> Program:  # fmt: skip
    """A Linear by itself."""
    bias = rng.standard_normal(o).astype(np.float32)
    op = Linear("x", "y", sparse(rng, (o, k), density), bias, Epilogue("r" if residual else None, low, high), "layer")
    shapes = {"x": (*leading, k), "y": (*leading, o)} | ({"r": (*leading, o)} if residual else {})
    return program([op], shapes, ["y"])


def feeds(given: Program, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(value.shape).astype(np.float32) for value in given.inputs]


def check(given: Program, level: str = "", threads: int = 2, runs: int = 2, **options) -> list:
    """Run a program and hold every output against the oracle; returns the report."""
    executable = compile_program(given, threads, target(level) if level else None, **options)
    rng = np.random.default_rng(1)
    for _ in range(runs):  # the second run finds the buffers as the first one left them
        arrays = feeds(given, rng)
        expected = interpret(given, dict(zip([v.name for v in given.inputs], arrays, strict=True)))
        for name, got in zip(given.outputs, executable.run(arrays), strict=True):
            assert got.shape == expected[name].shape
            largest = float(np.abs(expected[name]).max(initial=1.0))
            np.testing.assert_allclose(got, expected[name], rtol=1e-4, atol=1e-5 * largest, err_msg=name)
    return executable.report()
