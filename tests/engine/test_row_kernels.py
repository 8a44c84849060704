"""Kernels for values in C order, and for planes of vectors: elementwise chains, folds, products, moves, gathers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.engine.compile import compile_program
from sparsify.engine.functions import FUNCTIONS
from sparsify.engine.program import (
    Chain,
    Elementwise,
    Gather,
    LayerNorm,
    Linear,
    Link,
    MatMul,
    Program,
    Rearrange,
    Reduce,
    Softmax,
    Value,
)  # fmt: skip
from sparsify.engine.tape import PIECE, SLOTS
from sparsify.engine.vector_functions import VECTOR
from sparsify.errors import EngineError
from tests.engine.cases import check, levels, program, sparse, target

RNG = np.random.default_rng(0)
LEVELS = pytest.mark.parametrize("level", levels())


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def one(operation, output, **shapes):
    return program([operation], {**shapes, "y": output}, ["y"])


def shapes(rank=4, largest=6):
    return st.lists(st.integers(1, largest), min_size=1, max_size=rank).map(tuple)


def is_native(rows, kernel):
    assert {row.kernel for row in rows} <= {kernel, "copy"}


def test_every_function_is_native_or_known_not_to_be():
    assert VECTOR.keys() <= FUNCTIONS.keys()
    assert FUNCTIONS.keys() - VECTOR.keys() == {"cast", "cos", "mod", "pow", "sin"}


OPERANDS = {"clip": (-0.5, 0.75), "hard_sigmoid": (0.2, 0.5), "elu": (1.5,), "leaky_relu": (0.1,)}


@LEVELS
@pytest.mark.parametrize("name", [name for name in VECTOR if not FUNCTIONS[name].is_truth])
def test_function(name, level):
    positive = name in ("log", "sqrt")
    numbers = np.linspace(0.001 if positive else -9, 9, 2 * PIECE + 6).astype(np.float32)
    numbers[3] = 1e-3
    more = FUNCTIONS[name].arity - 1
    rest = [np.float32(x).reshape(()) for x in OPERANDS.get(name, (1.5, -0.25)[:more])]
    y = Elementwise(name, ("x", *rest), "y")
    executable = compile_program(one(y, numbers.shape, x=numbers.shape), 2, target(level))
    (got,) = executable.run([numbers])
    is_native(executable.report(), "elementwise" if name not in ("relu", "clip") else executable.report()[0].kernel)
    exact = FUNCTIONS[name].compute(numbers.astype(np.float64), *(r.astype(np.float64) for r in rest))
    np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-6)


SPECIAL = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e30, 89, -200, 0.5, 2.5], np.float32)


@LEVELS
@pytest.mark.parametrize(
    "name", ["abs", "exp", "isinf", "isnan", "log", "max", "min", "neg", "relu", "round", "sign", "sqrt"]
)
def test_special_numbers(name, level):
    with np.errstate(all="ignore"):
        operands = (SPECIAL, SPECIAL[::-1].copy())[: FUNCTIONS[name].arity]
        exact = FUNCTIONS[name].compute(*operands)
    names = ("x", "z")[: len(operands)]
    values = {n: Value(n, SPECIAL.shape) for n in names} | {"y": Value("y", SPECIAL.shape, str(exact.dtype))}
    given = Program(tuple(values[n] for n in names), ("y",), (Elementwise(name, names, "y"),), values)
    (got,) = compile_program(given, 1, target(level)).run(list(operands))
    np.testing.assert_allclose(got.astype(float), exact.astype(float), rtol=1e-6, atol=1e-30)


TRUTHS = [name for name, function in FUNCTIONS.items() if function.is_truth and function.arity == 2]


@LEVELS
@pytest.mark.parametrize("name", TRUTHS)
def test_truth_values(name, level):
    is_logic = name in ("and", "or", "xor")
    x, z = RNG.integers(-1, 2, (2, 5, 37)).astype(bool if is_logic else np.float32)
    dtype = "bool" if is_logic else "float32"
    links = (Link(name, (0, 1), "bool"), Link("not", (-1,), "bool"), Link("where", (-2, 2, 3), "float32"))
    values = {"x": Value("x", x.shape, dtype), "z": Value("z", z.shape, dtype), "w": Value("w", x.shape)}
    values["y"] = Value("y", x.shape)
    given = Program(
        (values["x"], values["z"], values["w"]), ("y",),
        (Chain(links, ("x", "z", "w", np.float32(3).reshape(())), "y"),), values,
    )  # fmt: skip
    w = normal(*x.shape)
    (got,) = compile_program(given, 2, target(level)).run([x, z, w])
    np.testing.assert_array_equal(got, np.where(~FUNCTIONS[name].compute(x, z), w, np.float32(3)))
    alone = Program((values["x"], values["z"]), ("y",), (Elementwise(name, ("x", "z"), "y"),),
                    {**values, "y": Value("y", x.shape, "bool")})  # fmt: skip
    executable = compile_program(alone, 1, target(level))
    np.testing.assert_array_equal(executable.run([x, z])[0], FUNCTIONS[name].compute(x, z))
    is_native(executable.report(), "elementwise")


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool"])
def test_whole_numbers_are_cast(dtype):
    x = RNG.integers(0, 2, (3, 41)).astype(dtype) * (1 if dtype == "bool" else 1000)
    values = {"x": Value("x", x.shape, dtype), "y": Value("y", x.shape)}
    given = Program((values["x"],), ("y",), (Elementwise("cast", ("x",), "y"),), values)
    executable = compile_program(given, 1)
    np.testing.assert_array_equal(executable.run([x.astype(dtype)])[0], x.astype(np.float32))
    is_native(executable.report(), "elementwise")


@settings(max_examples=200, deadline=None)
@given(shape=shapes(5), data=st.data(), level=st.sampled_from(levels()))
def test_any_broadcast(shape, data, level):
    def part():
        kept = data.draw(st.integers(0, len(shape)))
        return tuple(data.draw(st.sampled_from([1, size])) for size in shape[kept:])

    x, z, c = part(), part(), normal(*part())
    y = np.broadcast_shapes(x, z, c.shape)
    links = (Link("add", (0, 1), "float32"), Link("mul", (-1, 2), "float32"), Link("sub", (-2, 0), "float32"))
    rows = check(one(Chain(links, ("x", "z", c), "y"), y, x=x, z=z), level) if _full(x, z, c, y) else []
    assert all(row.kernel in ("elementwise", "copy") for row in rows)


def _full(x, z, c, y):
    """Whether all links have the output's shape."""
    return np.broadcast_shapes(x, z) == y


def test_a_chain_that_needs_too_many_pieces_runs_all_the_same():
    count = SLOTS + 2
    made = [Link("mul", (0, 0), "float32") for _ in range(count)]
    sums = [Link("add", (-1 - i, -count - i if i else -2), "float32") for i in range(count)]
    shape = (3, 50)
    check(one(Chain((*made, *sums), ("x",), "y"), shape, x=shape))


def test_a_chain_on_planes_keeps_the_layout():
    weight = sparse(RNG, (40, 24), 0.3)
    first = Linear("x", "a", weight, normal(40))
    second = Linear("b", "y", sparse(RNG, (24, 40), 0.3), normal(24))
    middle = Elementwise("gelu", ("a",), "b")
    sizes = {"x": (2, 9, 24), "a": (2, 9, 40), "b": (2, 9, 40), "y": (2, 9, 24)}
    rows = check(program([first, middle, second], sizes, ["y"]))
    assert [row.operation for row in rows] == ["copy", "Linear", "Elementwise", "Linear", "copy"]


AXES = [((3, 5, 197), 2), ((3, 5, 197), 1), ((2, 70, 3), 1), ((7, 1), 0), ((1, 1), 1), ((4, 7, 5, 3), 2), ((130,), 0)]


@LEVELS
@pytest.mark.parametrize(("shape", "axis"), AXES)
@pytest.mark.parametrize("kind", ["softmax", "mean", "sum", "prod", "max", "min"])
def test_fold_along_an_axis(kind, shape, axis, level):
    if kind == "softmax":
        rows = check(one(Softmax("x", "y", axis), shape, x=shape), level)
    else:
        output = tuple(1 if i == axis else size for i, size in enumerate(shape))
        rows = check(one(Reduce(kind, "x", "y", (axis,)), output, x=shape), level)
    assert rows[0].kernel in ("along", "across")


def test_fold_along_neighbouring_axes():
    check(one(Reduce("mean", "x", "y", (1, 3), False), (5, 7), x=(5, 9, 7, 1)))
    assert check(one(Reduce("sum", "x", "y", (1, 2)), (5, 1, 1, 7), x=(5, 9, 3, 7)))[0].kernel == "across"
    assert check(one(Reduce("sum", "x", "y", (0, 2)), (1, 9, 1), x=(5, 9, 3)))[0].kernel == "python"


@LEVELS
@pytest.mark.parametrize(("shape", "axis"), AXES)
def test_layer_norm(shape, axis, level):
    tail = shape[axis:]
    for bias in (normal(*tail), None):
        rows = check(one(LayerNorm("x", "y", normal(*tail), bias, 1e-3, axis), shape, x=shape), level)
        assert rows[0].kernel == "along"


@LEVELS
@pytest.mark.parametrize("leading", [(1, 5), (2, 16), (70,), (4, 37)])
def test_layer_norm_on_planes(leading, level):
    norm = LayerNorm("a", "b", normal(40), normal(40), 1e-5)
    first = Linear("x", "a", sparse(RNG, (40, 24), 0.3), normal(40))
    second = Linear("b", "y", sparse(RNG, (24, 40), 0.3), normal(24))
    sizes = {"x": (*leading, 24), "a": (*leading, 40), "b": (*leading, 40), "y": (*leading, 24)}
    rows = check(program([first, norm, second], sizes, ["y"]), level)
    assert "across" in {row.kernel for row in rows}


def test_softmax_of_masked_rows():
    x = normal(3, 40)
    x[0, 5:], x[1], x[2, 7] = -np.inf, -np.inf, np.nan
    for axis, turned in ((1, x), (0, x.T.copy())):
        (y,) = compile_program(one(Softmax("x", "y", axis), turned.shape, x=turned.shape), 1).run([turned])
        y = y if axis else y.T
        assert y[0, :5].sum() == pytest.approx(1, abs=1e-6)
        assert not y[0, 5:].any()
        assert np.isnan(y[1:]).all()


@settings(max_examples=150, deadline=None)
@given(
    m=st.integers(1, 40), k=st.integers(0, 40), n=st.sampled_from([1, 3, 16, 33, 64, 70, 130]),
    batch=st.sampled_from([((), ()), ((3,), (3,)), ((2, 1), (3,)), ((), (2, 2)), ((2, 3), (1, 3))]),
    level=st.sampled_from(levels()),
)  # fmt: skip
def test_any_product(m, k, n, batch, level):
    left, right = (*batch[0], m, k), (*batch[1], k, n)
    output = (*np.broadcast_shapes(*batch), m, n)
    rows = check(one(MatMul("x", "z", "y"), output, x=left, z=right), level)
    assert rows[0].kernel == "matmul"


@settings(max_examples=200, deadline=None)
@given(shape=shapes(5, 20), data=st.data(), level=st.sampled_from(levels()),
       dtype=st.sampled_from(["float32", "bool", "int64"]))  # fmt: skip
def test_any_move(shape, data, level, dtype):
    kind = data.draw(st.sampled_from(["transpose", "slice", "pad", "expand", "concat", "view"]))
    x = (RNG.standard_normal(shape) * 10).astype(dtype)
    inputs, arrays, given_arguments = ("x",), [x], {}
    if kind in ("transpose", "view"):
        perm = tuple(data.draw(st.permutations(range(len(shape)))))
        y, given_arguments = x.transpose(perm), {"perm": perm}
        if kind == "view":
            steps = (("transpose", {"perm": perm}, y.shape), ("expand", {}, (3, *y.shape)))
            y, given_arguments = np.broadcast_to(y, (3, *y.shape)), {"steps": steps}
    elif kind == "slice":
        spans = [data.draw(st.tuples(st.integers(0, size - 1), st.integers(1, 3), st.booleans())) for size in shape]
        cuts = [slice(None, None if a == 0 else a - 1, -s) if back else slice(a, size, s)
                for (a, s, back), size in zip(spans, shape, strict=True)]  # fmt: skip
        y = x[tuple(cuts)]
        bounds = [
            (size - 1, a - 1, -s) if back else (a, size, s) for (a, s, back), size in zip(spans, shape, strict=True)
        ]
        given_arguments = dict(zip(("starts", "stops", "steps"), zip(*bounds, strict=True), strict=True))
    elif kind == "pad":
        before, after = (tuple(data.draw(st.integers(0, 3)) for _ in shape) for _ in range(2))
        y = np.pad(x, list(zip(before, after, strict=True)), constant_values=1)
        given_arguments = {"before": before, "after": after, "value": 1}
    elif kind == "expand":
        x = x[tuple(slice(0, data.draw(st.sampled_from([1, size]))) for size in shape)]
        y, arrays = np.broadcast_to(x, (2, *shape)), [x]
    else:
        axis, z = data.draw(st.integers(0, len(shape) - 1)), x
        inputs, arrays, y = ("x", "z"), [x, z], np.concatenate([x, z], axis)
        given_arguments = {"axis": axis}
    values = {name: Value(name, a.shape, dtype) for name, a in zip((*inputs, "y"), (*arrays, y), strict=True)}
    move = Rearrange(kind, inputs, "y", given_arguments)
    executable = compile_program(Program(tuple(values[n] for n in inputs), ("y",), (move,), values), 2, target(level))
    for _ in range(2):
        np.testing.assert_array_equal(executable.run(arrays)[0], y)
    is_native(executable.report(), "move")


def test_moves_of_many_elements_are_cut_into_runs():
    shape = (10007,)
    check(one(Rearrange("pad", ("x",), "y", {"before": (1,), "after": (5000,), "value": 2.0}), (15008,), x=shape))
    check(one(Rearrange("concat", ("x", "x"), "y", {"axis": 0}), (20014,), x=shape))


def test_a_move_between_planes_needs_no_other_copy():
    """The heads of attention come from a Linear's planes and go back into the next one's."""
    first = Linear("x", "a", sparse(RNG, (24, 16), 0.3), normal(24))
    steps = (("reshape", {}, (2, 9, 4, 6)), ("transpose", {"perm": (0, 2, 1, 3)}, (2, 4, 9, 6)))
    heads = Rearrange("view", ("a",), "h", {"steps": steps})
    product = Elementwise("exp", ("h",), "e")
    back = (("transpose", {"perm": (0, 2, 1, 3)}, (2, 9, 4, 6)), ("reshape", {}, (2, 9, 24)))
    sizes = {"x": (2, 9, 16), "a": (2, 9, 24), "h": (2, 4, 9, 6), "e": (2, 4, 9, 6), "b": (2, 9, 24), "y": (2, 9, 8)}
    second = Linear("b", "y", sparse(RNG, (8, 24), 0.3), normal(8))
    rows = check(
        program([first, heads, product, Rearrange("view", ("e",), "b", {"steps": back}), second], sizes, ["y"])
    )
    assert [row.operation for row in rows] == [
        "copy",
        "Linear",
        "Rearrange",
        "Elementwise",
        "Rearrange",
        "Linear",
        "copy",
    ]


@LEVELS
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_gather(dtype, level):
    table, indices = normal(9, 5), RNG.integers(-9, 9, (4, 50)).astype(dtype)
    values = {"x": Value("x", indices.shape, dtype), "y": Value("y", (4, 50, 5))}
    executable = compile_program(Program((values["x"],), ("y",), (Gather(table, "x", "y"),), values), 2, target(level))
    np.testing.assert_array_equal(executable.run([indices])[0], table[indices])
    is_native(executable.report(), "gather")
    for bad in (9, -10):
        indices[2, 7] = bad
        with pytest.raises(EngineError, match="index out of range"):
            executable.run([indices])
    indices[2, 7] = 0
    np.testing.assert_array_equal(executable.run([indices])[0], table[indices])


def test_gather_along_another_axis():
    rows = check(one(Gather("x", np.array([[2, -1], [0, 1]]), "y", 1), (3, 2, 2, 7), x=(3, 5, 7)))
    assert rows[0].kernel == "gather"


def test_a_reshape_is_another_name():
    first, second = Rearrange("reshape", ("x",), "a"), Rearrange("reshape", ("b",), "y")
    middle = Elementwise("tanh", ("a",), "b")
    rows = check(program([first, middle, second], {"x": (4, 6), "a": (2, 12), "b": (2, 12), "y": (24,)}, ["y"]))
    assert [row.operation for row in rows] == ["Elementwise", "Rearrange"]
