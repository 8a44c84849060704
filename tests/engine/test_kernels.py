"""Every kernel on every target that this machine can run, against the float64 oracle."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from sparsify.engine import nonzeros, segments
from sparsify.engine.compile import compile_program
from sparsify.engine.kernels import straight
from sparsify.engine.library import kernel_files
from sparsify.engine.plan import assign_layouts
from sparsify.engine.program import Elementwise, Epilogue, LayerNorm, Pool, Rearrange, Recurrent, Reduce
from sparsify.engine.tuning import Tuning
from tests.engine.cases import check, convolution, levels, linear, program, target

RNG = np.random.default_rng(0)
STRAIGHT = Tuning(dense_above=2)


def pool(kind, n=2, c=5, size=(9, 11), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1), out=(5, 6), **more):
    op = Pool(kind, "x", "y", kernel, stride, padding, **more)
    return program([op], {"x": (n, c, *size), "y": (n, c, *out)}, ["y"])


def one(operation, **shapes):
    return program([operation], shapes, ["y"])


POSITIVE = [
    convolution(RNG, c=4, o=5, low=0.0).operations[0],
    Pool("max", "r", "y", (3, 3), (2, 2), (1, 1, 1, 1), fill=0.0),
]
SHAPES_OF_POSITIVE = {"x": (2, 4, 9, 12), "r": (2, 5, 9, 12), "y": (2, 5, 5, 6)}
POSITIVE[0] = replace(POSITIVE[0], output="r")


LAYERS = {  # kernel, stride, groups of one channel, residual
    "pointwise": ((1, 1), (1, 1), False, False),
    "residual": ((1, 1), (1, 1), False, True),
    "window": ((3, 3), (1, 1), False, False),
    "window_residual": ((3, 3), (1, 1), False, True),
    "strided": ((1, 1), (2, 2), False, False),
    "depthwise": ((3, 3), (1, 1), True, False),
    "depthwise_strided": ((3, 3), (2, 2), True, False),
}


def chain(kinds, size, channels):
    """Layers one after the other; a residual is the value before the layer's input, where it has the same shape."""
    layers, shapes, last, rng = [], {"v0": (1, channels, *size)}, 0, np.random.default_rng(0)
    for number, kind in enumerate(kinds, 1):
        kernel, stride, alone, residual = LAYERS[kind]
        edge = kernel[0] // 2
        one = convolution(rng, c=channels, o=channels, size=shapes[f"v{last}"][2:], kernel=kernel, stride=stride,
                          padding=(edge,) * 4, groups=channels if alone else 1, density=0.3)  # fmt: skip
        shapes[f"v{number}"] = one.values["y"].shape
        before = f"v{last - 1}" if residual and last and shapes[f"v{last - 1}"] == one.values["y"].shape else None
        epilogue = Epilogue(before, 0.0)
        layers.append(replace(one.operations[0], input=f"v{last}", output=f"v{number}", epilogue=epilogue))
        last = number
    return program(layers, shapes, [f"v{last}"])


def between(operation):
    """An operation from `a` to `b`, both [2, 9, 40], between two Linear, which read and write planes."""
    before, after = linear(RNG, leading=(2, 9), k=24, o=40), linear(RNG, leading=(2, 9), k=40, o=24)
    first, second = replace(before.operations[0], output="a"), replace(after.operations[0], input="b")
    return program(
        [first, operation, second], {"x": (2, 9, 24), "a": (2, 9, 40), "b": (2, 9, 40), "y": (2, 9, 24)}, ["y"]
    )


def sequences(steps=2, images=16, hidden=20):
    """A GRU's recurrence after the Linear that makes the input's share of its gates."""
    share = replace(linear(RNG, leading=(steps, images), k=24, o=3 * hidden).operations[0], output="a")
    recurrence, bias = RNG.standard_normal((3 * hidden, hidden)), RNG.standard_normal((2, 3 * hidden))
    weights = (None, recurrence.astype(np.float32), bias.astype(np.float32))
    after = Recurrent("gru", "a", ("y",), *weights, linear_before_reset=True)
    shapes = {"x": (steps, images, 24), "a": (steps, images, 3 * hidden), "y": (steps, images, hidden)}
    return program([share, after], shapes, ["y"])


# The second half of the channels before the first.
HALVES = (
    ("reshape", {}, (2, 9, 2, 20)),
    ("slice", {"starts": (0, 0, 1, 0), "stops": (2, 9, -1, 20), "steps": (1, 1, -1, 1)}, (2, 9, 2, 20)),
    ("reshape", {}, (2, 9, 40)),
)
ALL = {"straight", "dense", "loop", "compact"}
PLANES = {*ALL, "channels"}
# (name, program, kernels that must be able to run it). Names say which edge of a tile is crossed.
CASES = [
    ("one_row_block", convolution(RNG, o=31, c=16, size=(8, 8)), PLANES),
    ("one_row_more_than_a_block", convolution(RNG, o=32, c=16), PLANES),
    ("one_output_row", convolution(RNG, o=1, c=3), PLANES),
    ("stream_longer_than_a_step", convolution(RNG, o=30, c=64, density=0.9), PLANES),
    ("sums_wait_in_the_output", convolution(RNG, o=29, c=64, density=0.4, residual=True, low=0.0, high=6.0), ALL),
    ("no_weight_at_all", convolution(RNG, density=0.0), ALL),
    ("dense", convolution(RNG, density=1.0), PLANES),
    ("residual_relu6", convolution(RNG, residual=True, low=0.0, high=6.0), PLANES),
    ("stride", convolution(RNG, stride=(2, 2), size=(14, 13)), ALL),
    ("stride_1x1", convolution(RNG, stride=(2, 2), kernel=(1, 1), padding=(0,) * 4), ALL),
    ("stride_3", convolution(RNG, stride=(3, 2), kernel=(5, 3), padding=(2, 0, 1, 1)), ALL),
    ("dilation", convolution(RNG, dilation=(2, 3), padding=(2, 3, 2, 3)), ALL),
    ("valid", convolution(RNG, padding=(0,) * 4, size=(20, 17)), ALL),
    ("padding_beyond_kernel", convolution(RNG, padding=(4, 5, 3, 4)), ALL | {"channels"}),
    ("groups", convolution(RNG, groups=4, c=16, o=32), ALL | {"channels"}),
    ("depthwise", convolution(RNG, groups=8, density=1.0, residual=True, low=0.0), {"taps", "loop"}),
    ("depthwise_stride", convolution(RNG, groups=8, density=1.0, stride=(3, 2)), {"taps", "loop"}),
    ("depthwise_by_positions", convolution(RNG, groups=8, density=1.0, size=(16, 19), residual=True), {"taps"}),
    ("depthwise_in_lanes", convolution(RNG, n=16, groups=8, density=1.0), {"taps", "loop"}),
    ("depthwise_rows", convolution(RNG, n=3, c=5, o=5, groups=5, density=1.0, size=(7, 16), low=0.0), {"rows"}),
    ("depthwise_rows_wide", convolution(RNG, groups=8, density=1.0, size=(9, 117), high=1.0), {"rows"}),
    ("depthwise_rows_stride", convolution(RNG, groups=8, density=1.0, stride=(2, 2), size=(12, 70)), {"rows"}),
    ("depthwise_rows_below", convolution(RNG, groups=8, stride=(2, 2), padding=(0, 0, 1, 1), size=(8, 9)), {"rows"}),
    ("depthwise_rows_uneven", convolution(RNG, n=2, groups=8, padding=(0, 1, 1, 0), size=(6, 33)), {"rows"}),
    ("pitches", convolution(RNG, c=1, o=1, size=(2, 1), padding=(3, 0, 3, 2), density=1.0), {"channels", "taps"}),
    ("row", convolution(RNG, size=(1, 40), kernel=(1, 5), padding=(0, 2, 0, 2)), ALL),
    ("images_in_lanes", convolution(RNG, n=16, c=6, o=30), ALL),
    ("blocks_share_a_function", convolution(RNG, n=16, c=4, o=100, residual=True, low=0.0), ALL),
    ("images_in_lanes_stride", convolution(RNG, n=17, stride=(2, 2), residual=True), ALL),
    ("odd_rows_of_seven", convolution(RNG, o=70, size=(14, 14), stride=(2, 2), density=1.0, residual=True), PLANES),
    ("filtered_stem", convolution(RNG, c=3, o=9, size=(37, 66), kernel=(7, 7), stride=(2, 2), padding=(3,) * 4,
                                  density=1.0, low=0.0), {"winograd"}),
    ("filtered", convolution(RNG, n=2, c=7, o=6, size=(10, 33), density=1.0, residual=True, low=0.0), {"winograd"}),
    ("filtered_in_lanes", convolution(RNG, n=17, c=5, o=9, size=(8, 50), density=1.0, residual=True), {"winograd"}),
    ("filtered_strips", convolution(RNG, n=16, c=30, o=5, size=(4, 90), density=1.0), {"winograd"}),
    ("three_images", convolution(RNG, n=3, c=12, o=20, size=(7, 7)), PLANES),
    ("panels", convolution(RNG, size=(40, 41), c=4, o=4), PLANES),
    ("panels_of_each_thread", convolution(RNG, size=(16, 16), o=40, residual=True), PLANES),
    ("one_vector", linear(RNG, k=100, o=77), {"matvec"}),
    ("one_vector_dense", linear(RNG, k=35, o=18, density=1.0, residual=True, low=0.0), {"matvec"}),
    ("one_vector_long", linear(RNG, k=70000, o=3, density=0.01), {"matvec"}),
    ("linear_batch", linear(RNG, leading=(5,), k=40, o=60, residual=True), PLANES),
    ("linear_sequence", linear(RNG, leading=(3, 11), k=40, o=60), ALL),
    ("max_pool", pool("max"), {"taps"}),
    ("max_pool_rows", pool("max", c=3, size=(9, 37), padding=(0,) * 4, out=(4, 18)), {"rows"}),
    ("average_pool", pool("average"), {"taps"}),
    ("average_pool_counting", pool("average", count_padding=True), {"taps"}),
    ("pool_in_lanes", pool("max", n=16), {"taps"}),
    ("global_mean", one(Reduce("mean", "x", "y", (2, 3)), x=(1, 40, 7, 5), y=(1, 40, 1, 1)), {"mean"}),
    ("global_mean_flat", one(Reduce("mean", "x", "y", (2, 3), False), x=(3, 4, 7, 5), y=(3, 4)), {"mean"}),
    ("mean_in_lanes", one(Reduce("mean", "x", "y", (2, 3)), x=(16, 4, 7, 5), y=(16, 4, 1, 1)), {"mean"}),
    ("positive_max_pool", program(POSITIVE, SHAPES_OF_POSITIVE, ["y"]), {"rows"}),
    ("add", one(Elementwise("add", ("x", "r"), "y"), **dict.fromkeys("xry", (2, 5, 30, 40))), {"flat"}),
    ("relu", one(Elementwise("relu", ("x",), "y"), **dict.fromkeys("xy", (2, 3, 5, 7))), {"flat"}),
    ("gelu_on_planes", between(Elementwise("gelu", ("a",), "b")), {"elementwise"}),
    ("norm_on_planes", between(LayerNorm("a", "b", np.full(40, 2, np.float32), None, 1e-5)), {"across"}),
    ("slice_on_planes", between(Rearrange("view", ("a",), "b", {"steps": HALVES})), {"move"}),
    ("sequences", sequences(), {"recurrent_lanes"}),
    ("tandem", chain(["pointwise", "depthwise", "pointwise"], (96, 97), 60), {"tandem"}),
    ("reshape", one(Rearrange("reshape", ("x",), "y"), x=(4, 9, 1, 1), y=(4, 9)), {"flat"}),
]  # fmt: skip
PAIRS = [(name, kernel) for name, _, kernels in CASES for kernel in sorted(kernels)]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("name", "kernel"), PAIRS, ids=[f"{n}-{k}" for n, k in PAIRS])
def test_against_oracle(name, kernel, level):
    if level == "generic" and kernel in ("straight", "tandem"):
        pytest.skip("needs an encoder for the CPU")
    case = next(case for found, case, _ in CASES if found == name)
    tuning = STRAIGHT if kernel == "straight" else None
    rows = check(case, level, prefer=kernel, tuning=tuning)
    assert kernel in {row.kernel for row in rows}


def test_every_kernel_for_planes_has_a_case():
    tested = {kernel for _, _, kernels in CASES for kernel in kernels}
    for name, file in kernel_files().items():
        if "layouts=" in inspect.getsource(file):  # the others are held against the oracle in C order
            assert name in tested, f"add a case for {name}"


SMALL = st.integers(1, 3)
SHAPES = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 1, 2, 8, 16, 19]),
        "c": st.integers(1, 20),
        "o": st.integers(1, 60),
        "size": st.tuples(st.integers(1, 20), st.integers(1, 36)),
        "kernel": st.tuples(SMALL, SMALL),
        "stride": st.tuples(SMALL, SMALL),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "padding": st.tuples(*[st.integers(0, 3)] * 4),
        "density": st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]),
        "residual": st.booleans(),
        "low": st.sampled_from([-np.inf, 0.0]),
        "high": st.sampled_from([np.inf, 1.0]),
    }
)


@settings(max_examples=1500, deadline=None)
@given(
    shape=SHAPES,
    level=st.sampled_from(levels()),
    kernel=st.sampled_from(["straight", "dense", "channels", "loop", "compact"]),
    threads=st.integers(1, 3),
    panel=st.sampled_from([1, 2, 32]),
    panel_bytes=st.sampled_from([512, 512 << 10]),
)
def test_any_convolution(shape, level, kernel, threads, panel, panel_bytes):
    case = convolution(np.random.default_rng(0), **shape)
    if case is not None:
        tuning = Tuning(dense_above=2.0, panel=panel, panel_bytes=panel_bytes)
        check(case, level, threads, prefer=kernel, tuning=tuning)


@settings(max_examples=400, deadline=None)
@given(
    shape=SHAPES,
    taps=st.sampled_from([3, 4]),
    fewer=st.integers(0, 2),
    size=st.tuples(st.integers(12, 40), st.integers(3, 40)),
    level=st.sampled_from(levels()),
    threads=st.integers(1, 3),
    panel_bytes=st.sampled_from([512, 512 << 10]),
)
def test_any_tall_convolution(shape, taps, fewer, size, level, threads, panel_bytes):
    down = shape["stride"][0]
    kernel = taps * down - fewer % down, shape["kernel"][1]
    shape |= {"kernel": kernel, "size": size, "dilation": (1, 1), "high": np.inf}  # a bound hides how large sums are
    case = convolution(np.random.default_rng(0), **shape)
    if case is not None:
        report = check(case, level, threads, prefer="winograd", tuning=Tuning(panel_bytes=panel_bytes))
        event("winograd" if any(row.kernel == "winograd" for row in report) else "another kernel")


@settings(max_examples=200, deadline=None)
@given(
    leading=st.sampled_from([(1,), (2,), (3,), (15,), (16,), (33,), (2, 9)]),
    k=st.integers(1, 300),
    o=st.integers(1, 90),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    residual=st.booleans(),
    level=st.sampled_from(levels()),
    linear_images=st.sampled_from([2, 100]),
    panel_bytes=st.sampled_from([2 << 10, 512 << 10]),
)
def test_any_linear(leading, k, o, density, residual, level, linear_images, panel_bytes):
    case = linear(np.random.default_rng(0), leading=leading, k=k, o=o, density=density, residual=residual, low=0.0)
    check(case, level, tuning=Tuning(linear_images=linear_images, panel_bytes=panel_bytes))


@settings(max_examples=150, deadline=None)
@given(
    n=st.sampled_from([1, 1, 2, 16]),
    c=st.integers(1, 20),
    size=st.tuples(st.integers(1, 20), st.integers(1, 70)),
    kernel=st.sampled_from([(3, 3), (3, 3), (3, 5), (1, 1)]),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    level=st.sampled_from(levels()),
    residual=st.booleans(),
)
@example(n=1, c=1, size=(18, 1), kernel=(3, 3), stride=(1, 1), padding=(1,) * 4, level=levels()[:2][-1], residual=False)
def test_any_depthwise(n, c, size, kernel, stride, padding, level, residual):
    rng = np.random.default_rng(0)
    case = convolution(rng, n=n, c=c, o=c, groups=c, size=size, kernel=kernel, stride=stride, padding=padding,
                       density=1.0, residual=residual, low=0.0)  # fmt: skip
    if case is not None:
        check(case, level)


@settings(max_examples=300, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([*LAYERS, "pointwise", "depthwise"]), min_size=2, max_size=5),
    size=st.tuples(st.integers(14, 40), st.integers(8, 40)),
    channels=st.integers(2, 20),
    threads=st.integers(1, 3),
    level=st.sampled_from(levels()),
    kernel=st.sampled_from(["", "straight", "loop", "compact", "dense"]),
)
def test_any_layers_in_bands(kinds, size, channels, threads, level, kernel):
    case = chain(kinds, size, channels)
    check(case, level, threads, prefer=kernel, tuning=Tuning(dense_above=2.0, pages=1))


@settings(max_examples=200, deadline=None)
@given(
    before=st.sampled_from([[], ["pointwise"], ["window"]]),
    depthwise=st.sampled_from(["depthwise", "depthwise_strided"]),
    after=st.lists(st.sampled_from(["pointwise", "residual", "depthwise"]), max_size=3),
    size=st.tuples(st.integers(20, 60), st.integers(5, 40)),
    channels=st.integers(1, 12),
    rows=st.integers(4, 10),
    threads=st.integers(1, 3),
    level=st.sampled_from([level for level in levels() if level != "generic"] or ["generic"]),
)
def test_any_layers_in_tandem(before, depthwise, after, size, channels, rows, threads, level):
    case = chain([*before, "pointwise", depthwise, *after], size, channels)
    tuning = Tuning(dense_above=2.0, pages=1, tandem_bytes=4 * channels * size[1] * rows)
    report = check(case, level, threads, tuning=tuning)
    event("in tandem" if any(row.kernel == "tandem" for row in report) else "one by one")


def test_layers_in_bands_have_bands():
    def banded(kinds):
        layouts = assign_layouts(chain(kinds, (28, 28), 16), target("generic"), Tuning(pages=1), 2)
        return {name for name, planes in layouts.items() if planes.bands > 1}

    assert banded(["pointwise", "pointwise", "residual", "strided"]) == {"v1", "v2", "v3"}
    assert banded(["pointwise", "depthwise", "pointwise", "window", "pointwise"]) == {"v2", "v4"}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["max", "average"]),
    n=st.sampled_from([1, 3, 16]),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    kernel=st.tuples(SMALL, SMALL),
    stride=st.tuples(SMALL, SMALL),
    padded=st.booleans(),
    count=st.booleans(),
    level=st.sampled_from(levels()),
)
def test_any_pool(kind, n, size, kernel, stride, padded, count, level):
    padding = tuple(k // 2 if padded else 0 for k in (*kernel, *kernel))
    out = tuple((size[i] + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    check(pool(kind, n, 3, size, kernel, stride, padding, out, count_padding=count), level)


@pytest.mark.parametrize("level", levels())
def test_permuted_operands(level):
    case = linear(np.random.default_rng(0), leading=(1,), k=150, o=125, density=0.3, residual=True, low=0.0)
    (row,) = check(case, level)
    assert ("permuted" in row.why) == (level == "avx512")


@pytest.mark.parametrize("kernel", ["straight", "compact", "matvec"])
def test_large_weights_are_packed_a_part_at_a_time(kernel, monkeypatch):
    monkeypatch.setattr(straight, "_AT_ONCE", 100)
    monkeypatch.setattr(segments, "_PART", 1000)
    monkeypatch.setattr(nonzeros, "_AT_ONCE", 300)
    images = 1 if kernel == "matvec" else 16
    case = linear(RNG, leading=(images,), k=150, o=200, density=0.4)
    (row,) = [row for row in check(case, prefer=kernel, tuning=STRAIGHT) if row.operation == "Linear"]
    assert row.kernel == kernel


def test_a_cpu_of_slow_multiplications_leaves_sparse_layers_to_straight_line_code():
    if "avx512" not in levels():
        pytest.skip("needs AVX-512")
    case = linear(RNG, leading=(16,), k=1000, o=1500, density=0.5)

    def chosen(cpu):
        return [row.kernel for row in compile_program(case, 1, replace(target("avx512"), cpu=cpu)).report()]

    assert "straight" in chosen("znver4")
    assert "straight" not in chosen("znver5")


def test_nan_and_infinity_survive_a_clamp():
    case = convolution(RNG, c=1, o=1, kernel=(1, 1), padding=(0,) * 4, density=1.0, low=0.0, high=6.0)
    x = np.zeros(case.inputs[0].shape, np.float32)
    x[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    for level in levels():
        y = compile_program(case, 1, target(level)).run([x])[0][0, 0, 0]
        assert np.isnan(y[0])
        assert sorted(y[1:3]) == [0.0, 6.0]
