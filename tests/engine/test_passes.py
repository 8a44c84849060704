"""Each pass on a minimal graph: it fires, leaves the operations that it should, and changes no result."""

from collections import Counter

import numpy as np
import pytest

from sparsify.engine import nonzeros
from sparsify.engine.front import load
from sparsify.engine.front.importing import import_graph
from sparsify.engine.front.passes import LAST, PASSES, run_passes
from sparsify.engine.interpreter import interpret

CONV = "Conv <pads: ints = [1, 1, 1, 1]>"

# pass: graph, operations that are left with all passes; X is [2, 4, 6, 6] and V is [3, 4]
CASES = {
    "drop_unread": (
        "g (float[2,4,6,6] x) => (float[] y) { y = Relu(x)  a = Exp(x)  b = Neg(a) }",
        "Elementwise",
    ),
    "drop_idle": (
        "g (float[3,4] x) => (float[] y) { a = Transpose <perm: ints = [0, 1]> (x)  y = Relu(a) }",
        "Elementwise",
    ),
    "transpose_as_reshape": (
        "g (float[3,1,4] x) => (float[] y) { y = Transpose <perm: ints = [1, 0, 2]> (x) }",
        "Rearrange",
    ),
    "merge_reshapes": (
        "g (float[2,4,6,6] x) => (float[] y) { a = Flatten <axis: int = 1> (x)  y = Reshape (a, shape) }",
        "Rearrange",
    ),
    "merge_transposes": (
        "g (float[2,4,6,6] x) => (float[] y) { a = Transpose <perm: ints = [1, 2, 3, 0]> (x)"
        " y = Transpose <perm: ints = [2, 0, 1, 3]> (a) }",
        "Rearrange",
    ),
    "reshape_after_elementwise": (
        "g (float[2,4,6] x) => (float[] y) { a = Conv <pads: ints = [1, 1]> (x, line)  b = Mul(a, scale1)"
        " c = Relu(b)  y = Conv <pads: ints = [1, 1]> (c, line) }",
        "Convolution Convolution Rearrange Rearrange",
    ),
    "pool_everything_is_mean": (
        "g (float[2,4,6,6] x) => (float[] y) { y = AveragePool <kernel_shape: ints = [6, 6]> (x) }",
        "Reduce",
    ),
    "find_gelu": (
        "g (float[3,4] x) => (float[] y) { a = Div(x, root)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)"
        " y = Mul(d, half) }",
        "Elementwise",
    ),
    "find_layer_norm": (
        "g (float[3,4] x) => (float[] y) { m = ReduceMean <axes: ints = [-1]> (x)  d = Sub(x, m)"
        " s = Pow(d, two)  v = ReduceMean <axes: ints = [-1]> (s)  e = Add(v, tiny)  r = Sqrt(e)"
        " n = Div(d, r)  a = Mul(n, four)  y = Add(a, four) }",
        "LayerNorm",
    ),
    "fold_padding": (
        "g (float[2,4,6,6] x) => (float[] y) { a = Pad(x, pads)  y = Conv(a, w) }",
        "Convolution",
    ),
    "fold_scale_and_shift_after": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)"
        " y = BatchNormalization(a, four, four, four, four) }",
        "Convolution",
    ),
    "fold_scale_and_shift_before": (
        "g (float[2,4,6,6] x) => (float[] y) { a = BatchNormalization(x, four, four, four, four) y = Conv(a, w) }",
        "Convolution",
    ),
    "fuse_residual": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  y = Add(x, a) }}",
        "Convolution",
    ),
    "fuse_clip": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  b = Relu(a)  y = Clip(b, half, one) }}",
        "Convolution",
    ),
    "scale_as_depthwise": (
        "g (float[2,4,6,6] x) => (float[] y) { a = BatchNormalization(x, four, four, four, four) y = Relu(a) }",
        "Convolution",
    ),
    "zero_around_maximum": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  b = Relu(a)"
        " y = MaxPool <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (b) }",
        "Convolution Pool",
    ),
    "inputs_at_once": (
        "g (float[3,2,4] x) => (float[] y) { y = GRU <hidden_size: int = 4> (x, gates, gates) }",
        "Linear Recurrent Rearrange",
    ),
    "linear_of_matrix": (
        "g (float[2,4,6,6] x) => (float[] y) { a = MatMul(x, square)  b = Add(a, x)  y = Relu(b) }",
        "Rearrange Rearrange Linear Rearrange",
    ),
    "fuse_elementwise": (
        "g (float[3,4] x) => (float[] y) { a = Exp(x)  b = Mul(a, four)  c = Tanh(a)  y = Add(b, c) }",
        "Chain",
    ),
    "fuse_moves": (
        "g (float[2,4,6,6] x) => (float[] y) { a = Reshape (x, heads)  b = Transpose <perm: ints = [1, 0, 2]> (a)"
        " y = Slice (b, begin, stop) }",
        "Rearrange",
    ),
}
RNG = np.random.default_rng(3)
WEIGHTS = {
    "w": RNG.standard_normal((4, 4, 3, 3)).astype(np.float32),
    "line": RNG.standard_normal((4, 4, 3)).astype(np.float32),
    "four": np.array([0.5, 1.5, 2.0, 0.25], np.float32),
    "scale1": RNG.standard_normal((4, 1)).astype(np.float32),
    "gates": RNG.standard_normal((1, 12, 4)).astype(np.float32),
    "square": RNG.standard_normal((6, 6)).astype(np.float32),
    "shape": np.array([4, -1], np.int64),
    "heads": np.array([8, 6, 6], np.int64),
    "begin": np.array([1, 0, 2], np.int64),
    "stop": np.array([4, 8, 6], np.int64),
    "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64),
    "root": np.float32(np.sqrt(2)).reshape(()),
    "one": np.array(1, np.float32),
    "two": np.array(2, np.float32),
    "half": np.array(0.5, np.float32),
    "tiny": np.array(1e-5, np.float32),
}


def kinds(program) -> Counter:
    return Counter(type(operation).__name__ for operation in program.operations)


def imported(make_model, text):
    used = {name: array for name, array in WEIGHTS.items() if name in text.replace("(", " ").replace(",", " ")}
    graph = load(make_model(text, used, opset=17))
    shapes = {port.name: tuple(port.shape) for port in graph.inputs}
    feeds = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return import_graph(graph, shapes), feeds


def test_every_pass_has_a_case():
    assert list(CASES) == list(dict.fromkeys(function.__name__ for function in (*PASSES, *LAST)))


@pytest.mark.parametrize("weights", ["dense", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_pass(make_model, name, weights, monkeypatch):
    if weights == "packed":
        monkeypatch.setattr(nonzeros, "LARGE", 1)
        monkeypatch.setattr(nonzeros, "DENSEST", 1.0)
    text, left = CASES[name]
    before, feeds = imported(make_model, text)
    after = run_passes(before)
    assert kinds(after) == Counter(left.split())
    without = run_passes(before, *(tuple(p for p in group if p.__name__ != name) for group in (PASSES, LAST)))
    assert without.operations != after.operations
    for ours, theirs in zip(interpret(after, feeds).values(), interpret(before, feeds).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


REFUSALS = {
    "the result before the clamp is an output too": (
        f"g (float[2,4,6,6] x) => (float[] y, float[] a) {{ a = {CONV} (x, w)  y = Relu(a) }}",
        "Convolution Elementwise",
    ),
    "somebody else reads the result before the scale": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  b = Mul(a, half)"
        " y = Concat <axis: int = 1> (a, b) }",
        "Convolution Elementwise Rearrange",
    ),
    "a shift before a zero border": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = Add(x, half)  y = {CONV} (a, w) }}",
        "Elementwise Convolution",
    ),
    "a residual that is broadcast": (
        f"g (float[2,4,6,6] x, float[1,4,1,1] r) => (float[] y) {{ a = {CONV} (x, w)  y = Add(a, r) }}",
        "Convolution Elementwise",
    ),
    "a border that is not zero": (
        "g (float[2,4,6,6] x) => (float[] y) { a = Pad(x, pads, half)  y = Conv(a, w) }",
        "Rearrange Convolution",
    ),
    "a residual of the same convolution twice": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  y = Add(a, a) }}",
        "Convolution Elementwise",
    ),
    "a scale after the clamp": (
        f"g (float[2,4,6,6] x) => (float[] y) {{ a = {CONV} (x, w)  b = Relu(a)  y = Mul(b, half) }}",
        "Convolution Elementwise",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_passes_refuse(make_model, why):
    text, left = REFUSALS[why]
    before, feeds = imported(make_model, text)
    after = run_passes(before)
    assert kinds(after) == Counter(left.split())
    for ours, theirs in zip(interpret(after, feeds).values(), interpret(before, feeds).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_two_convolutions_that_meet_fuse_into_the_later_one(make_model):
    twice = f"a = {CONV} (x, w)  b = {CONV} (x, w)"
    text = f"g (float[2,4,6,6] x) => (float[] y) {{ {twice}  c = Add(a, b)  y = Relu(c) }}"
    before, feeds = imported(make_model, text)
    after = run_passes(before)
    first, second = after.operations
    assert first.epilogue.residual is None
    assert (second.epilogue.residual, second.epilogue.low) == (first.output, 0.0)
    np.testing.assert_allclose(interpret(after, feeds)["y"], interpret(before, feeds)["y"], rtol=1e-6, atol=1e-6)
