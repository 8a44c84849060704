"""Small ONNX models in a line or two, and the check that they are computed right."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from sparsify.engine import InferenceSession
from sparsify.engine.front import build, load
from sparsify.engine.interpreter import interpret


@pytest.fixture(scope="session")
def make_model():
    """make_model(text, weights, opset): bytes of a model whose graph is in ONNX's text form.

    weights: {name: array} become initializers.
    """

    def make(text: str, weights=None, opset: int = 20) -> bytes:
        graph = onnx.parser.parse_graph(text)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
        imports = [onnx.helper.make_opsetid("", opset)]
        ir_version = onnx.helper.find_min_ir_version_for(imports)
        return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()

    return make


def run_onnxruntime(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options).run(None, feeds)


def assert_close(ours, theirs, tolerance):
    """Largest difference below `tolerance` times the largest number; integers equal."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if theirs.dtype.kind != "f":
        np.testing.assert_array_equal(ours, theirs)
    elif theirs.size:
        scale = max(float(np.abs(theirs).max()), 1e-6)
        assert float(np.abs(ours.astype(float) - theirs).max()) < tolerance * scale


@pytest.fixture(scope="session")
def check():
    """check(model, feeds): the session and the oracle agree with onnxruntime; returns the session."""

    def run(model, feeds, tolerance: float = 1e-4, session=None):
        expected = run_onnxruntime(model, feeds)
        session = session or InferenceSession(model, threads=2)
        for ours, theirs in zip(session.run(None, feeds), expected, strict=True):
            assert_close(ours, theirs, tolerance)
        program = build(load(model), {name: array.shape for name, array in feeds.items()})
        for ours, theirs in zip(interpret(program, feeds).values(), expected, strict=True):
            assert_close(ours.astype(theirs.dtype), theirs, tolerance)
        return session

    return run


@pytest.fixture
def rng():
    """Random numbers, the same in every run."""
    return np.random.default_rng(20)


@pytest.fixture
def sparse(rng):
    """sparse(*shape, density=0.3): random weights with exact zeros."""

    def make(*shape: int, density: float = 0.3):
        values = rng.standard_normal(shape).astype(np.float32)
        return values * (rng.random(shape) < density).astype(np.float32)

    return make
