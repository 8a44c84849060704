"""Native GRU and LSTM layers on every target against the float64 oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.engine.compile import compile_program
from sparsify.engine.front.passes import run_passes
from sparsify.engine.interpreter import interpret
from sparsify.engine.program import Program, Recurrent, Value
from sparsify.engine.target import host, named

LEVELS = ["generic", "avx2", "avx512"]
GATES = {"gru": 3, "lstm": 4}


@st.composite
def layers(draw):
    """(program, seed): one direction of a layer with any of its inputs and outputs left out."""
    kind = draw(st.sampled_from(["gru", "lstm"]))
    steps, size = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    images = draw(st.sampled_from([1, 2, 3, 5, 15, 16, 17, 32, 70]))
    hidden = draw(st.sampled_from([1, 3, 7, 8, 9, 15, 16, 17, 31, 40]))
    density = draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = GATES[kind] * hidden
    states = {"hidden": (images, hidden), "cell": (images, hidden)}
    if kind == "gru":
        del states["cell"]
    initial = tuple(name if draw(st.booleans()) else None for name in states)
    results = {"sequence": (steps, images, hidden)} | {f"last {name}": shape for name, shape in states.items()}
    wanted = draw(st.lists(st.sampled_from(list(results)), min_size=1, unique=True))
    operation = Recurrent(
        kind=kind,
        input="x",
        outputs=tuple(name if name in wanted else None for name in results),
        weight=rng.standard_normal((rows, size)).astype(np.float32),
        recurrence=(rng.standard_normal((rows, hidden)) * (rng.random((rows, hidden)) < density)).astype("f"),
        bias=rng.standard_normal((2, rows)).astype(np.float32),
        initial=(*initial, None)[:2],
        reverse=draw(st.booleans()),
        linear_before_reset=draw(st.booleans()),
    )
    shapes = {"x": (steps, images, size)} | {name: states[name] for name in initial if name}
    shapes |= {name: results[name] for name in results if name in wanted}
    values = {name: Value(name, shape) for name, shape in shapes.items()}
    inputs = tuple(values[name] for name in ("x", *initial) if name)
    outputs = tuple(name for name in results if name in wanted)
    return Program(inputs, outputs, (operation,), values)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(program=layers(), threads=st.sampled_from([1, 3]), prefer=st.sampled_from(["recurrent", "recurrent_lanes"]))
def test_layer(level, program, threads, prefer):
    if LEVELS.index(level) > LEVELS.index(host().level):
        return
    rng = np.random.default_rng(0)
    feeds = {value.name: rng.standard_normal(value.shape).astype(np.float32) for value in program.inputs}
    executable = compile_program(run_passes(program), threads, named(level), prefer=prefer)
    layer = program.operations[0]
    resets_first = layer.kind == "gru" and not layer.linear_before_reset  # which lanes cannot
    assert ("recurrent" if resets_first else prefer) in {row.kernel for row in executable.report()}
    exact = interpret(program, feeds)
    for _ in range(2):  # states of the first run must not leak into the second
        found = executable.run([feeds[value.name] for value in program.inputs])
        for name, array in zip(program.outputs, found, strict=True):
            np.testing.assert_allclose(array, exact[name], rtol=1e-4, atol=1e-5)


def test_extreme_gates_saturate(rng):
    """Where exp over- or underflows the gates are 0 or 1, not NaN."""
    bias = np.zeros((2, 12), np.float32)
    operation = Recurrent(
        "gru", "x", ("y",), np.eye(12, 12, dtype=np.float32), np.eye(12, 4, dtype=np.float32), bias,
        linear_before_reset=True,
    )  # fmt: skip
    values = {"x": Value("x", (3, 1, 12)), "y": Value("y", (3, 1, 4))}
    program = Program((values["x"],), ("y",), (operation,), values)
    x = np.array([-1e30, -200, -90, -1e-30, 0, 1e-30, 90, 200, 1e30, 1, -1, 88.4], np.float32)
    feeds = {"x": np.stack([rng.permutation(x) for _ in range(3)])[:, None]}
    (y,) = compile_program(run_passes(program), 1).run([feeds["x"]])
    np.testing.assert_allclose(y, interpret(program, feeds)["y"], rtol=1e-5, atol=1e-6)
