"""InferenceSession behaves as onnxruntime's: names, shapes, types, dynamic sizes, threads."""

import threading

import numpy as np
import pytest

from sparsify.engine import InferenceSession
from sparsify.engine.session import PROGRAMS
from sparsify.errors import EngineError

NET = """g (float[n,3,h,8] x, float[n,4] v) => (float[n,4,h,8] plane, float[n,4] row) {
    a = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
    plane = Relu(a)
    m = GlobalAveragePool(plane)
    f = Flatten(m)
    row = Add(f, v)
}"""


@pytest.fixture
def model(make_model, sparse):
    return make_model(NET, {"w": sparse(4, 3, 3, 3)})


def feeds_of(rng, n=2, h=8):
    return {
        "x": rng.standard_normal((n, 3, h, 8)).astype(np.float32),
        "v": rng.standard_normal((n, 4)).astype(np.float32),
    }


def test_inputs_and_outputs(model):
    session = InferenceSession(model)
    x, v = session.get_inputs()
    assert (x.name, x.shape, x.type) == ("x", ["n", 3, "h", 8], "tensor(float)")
    assert (v.name, v.shape) == ("v", ["n", 4])
    assert [output.name for output in session.get_outputs()] == ["plane", "row"]


def test_path_and_bytes(model, tmp_path, rng):
    path = tmp_path / "net.onnx"
    path.write_bytes(model)
    feeds = feeds_of(rng)
    first = InferenceSession(model).run(None, feeds)
    for source in (path, str(path)):
        for ours, theirs in zip(InferenceSession(source).run(None, feeds), first, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_outputs_by_name(model, rng):
    session = InferenceSession(model)
    feeds = feeds_of(rng)
    plane, row = session.run(None, feeds)
    again = session.run(["row", "plane", "row"], feeds)
    for ours, theirs in zip(again, (row, plane, row), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_dynamic_sizes(model, check, rng):
    session = InferenceSession(model, threads=2)
    for n, h in [(1, 8), (3, 8), (16, 5), (1, 1), (1, 8), (17, 9)]:
        check(model, feeds_of(rng, n, h), session=session)


def test_programs_are_bounded(model, rng):
    session = InferenceSession(model)
    for n in range(1, PROGRAMS + 4):
        session.run(None, feeds_of(rng, n))
    assert len(session._executables) == PROGRAMS


def test_results_belong_to_the_caller(model, rng):
    session = InferenceSession(model)
    feeds = feeds_of(rng)
    first = session.run(None, feeds)
    kept = [array.copy() for array in first]
    session.run(None, feeds_of(rng))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        array += 1  # writable
    for array, copy in zip(session.run(None, feeds), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_inputs_need_no_particular_memory(model, rng):
    session = InferenceSession(model)
    feeds = feeds_of(rng)
    expected = session.run(None, feeds)
    turned = {"x": np.asfortranarray(feeds["x"]), "v": np.repeat(feeds["v"], 2, axis=1)[:, ::2]}
    for ours, theirs in zip(session.run(None, turned), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision_in_and_out(make_model, sparse, rng, check):
    text = "g (float16[n,6] x) => (float16[n,5] y) { a = MatMul(x, w)  y = Relu(a) }"
    model = make_model(text, {"w": sparse(6, 5).astype(np.float16)})
    session = check(model, {"x": rng.standard_normal((3, 6)).astype(np.float16)}, tolerance=2e-3)
    assert session.get_inputs()[0].type == "tensor(float16)"


def test_one_session_in_many_threads(model, rng):
    session = InferenceSession(model, threads=2)
    cases = [feeds_of(rng, n) for n in (1, 2, 3, 4)]
    expected = [session.run(None, feeds) for feeds in cases]
    wrong = []

    def work(number):
        for _ in range(20):
            for ours, theirs in zip(session.run(None, cases[number]), expected[number], strict=True):
                if not np.array_equal(ours, theirs):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_shape_is_compiled_once_however_many_ask(model, rng):
    session = InferenceSession(model, threads=2)
    feeds, found = feeds_of(rng), []
    barrier = threading.Barrier(6)

    def work():
        barrier.wait()
        found.append(session._executable(((2, 3, 8, 8), (2, 4))))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(executable) for executable in found}) == 1
    session.run(None, feeds)
    assert len(session._executables) == 1


def test_several_sessions_at_once(make_model, sparse, rng):
    models = [make_model("g (float[n,6] x) => (float[n,5] y) { y = MatMul(x, w) }", {"w": sparse(6, 5)}) for _ in "abc"]
    sessions = [InferenceSession(model, threads=threads) for model, threads in zip(models, (1, 2, 4), strict=True)]
    x = rng.standard_normal((2, 6)).astype(np.float32)
    first = [session.run(None, {"x": x})[0] for session in sessions]
    assert not np.array_equal(first[0], first[1])
    for session, expected in zip(reversed(sessions), reversed(first), strict=True):
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_explain(model, rng):
    session = InferenceSession(model)
    with pytest.raises(EngineError, match="nothing has run yet"):
        session.explain()
    table = str(session.explain({"x": (1, 3, 8, 8), "v": (1, 4)}))
    assert "Convolution" in table and "density" in table and "total" in table
    session.run(None, feeds_of(rng))
    rows = session.explain().rows
    assert any(row.measured > 0 for row in rows)
    assert session.explain().foreign == ()


def test_explain_names_what_is_left_to_onnxruntime(make_model, rng, check):
    text = "g (float[n,6] x) => (float[n,6] y) { a = Relu(x)  b = Hardmax(a)  y = Add(b, x) }"
    session = check(make_model(text), {"x": rng.standard_normal((3, 6)).astype(np.float32)})
    assert session.explain().foreign == ("Hardmax",)
    assert "Left to onnxruntime: Hardmax." in str(session.explain())


def test_results_whose_shape_depends_on_numbers(make_model, rng, check):
    text = "g (float[n,6] x) => (int64[k,m] y, float[n,6] z) { z = Relu(x)  a = NonZero(z)  y = Transpose(a) }"
    session = check(make_model(text), {"x": rng.standard_normal((3, 6)).astype(np.float32)})
    assert set(session.explain().foreign) == {"NonZero", "Transpose"}


WRONG_FEEDS = [
    ({"v": None}, "input 'v' is missing"),
    ({"more": np.zeros(1, np.float32)}, "no input 'more'"),
    ({"v": np.zeros((2, 4))}, r"astype\(numpy.float32\)"),
    ({"v": np.zeros((2, 5), np.float32)}, "has the shape"),
    ({"v": np.zeros((3, 4), np.float32)}, r"has the shape \(2, 4\)"),
    ({"v": np.zeros(4, np.float32)}, "has the shape"),
    ({"x": np.zeros((2, 3, 8, 9), np.float32)}, "has the shape"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_FEEDS)
def test_wrong_feeds(model, rng, change, message):
    feeds = {**feeds_of(rng), **change}
    feeds = {name: array for name, array in feeds.items() if array is not None}
    with pytest.raises(EngineError, match=message):
        InferenceSession(model).run(None, feeds)


def test_wrong_output_name_and_threads(model, rng):
    with pytest.raises(EngineError, match="no output 'rows'"):
        InferenceSession(model).run(["rows"], feeds_of(rng))
    with pytest.raises(EngineError, match="at least one thread"):
        InferenceSession(model, threads=0)


OUTPUTS = {
    "an input": "g (float[n,4] x) => (float[n,4] x) { z = Relu(x) }",
    "an input by another name": "g (float[n,4] x) => (float[n,4] y) { y = Identity(x) }",
    "a constant": "g (float[n,4] x) => (float[2] c) { z = Relu(x) }",
    "two names of one value": "g (float[n,4] x) => (float[] y, float[] z) { y = Relu(x)  z = Identity(y) }",
    "a value and its reshape": "g (float[n,4] x) => (float[] y, float[] z) { y = Relu(x)  z = Flatten(y) }",
    "what another is made of": "g (float[n,4] x) => (float[] y, float[] z) { y = Relu(x)  z = Exp(y) }",
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind(make_model, rng, check, kind):
    model = make_model(OUTPUTS[kind], {"c": np.array([3.0, 4.0], np.float32)})
    check(model, {"x": rng.standard_normal((3, 4)).astype(np.float32)})
