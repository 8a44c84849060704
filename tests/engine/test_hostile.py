"""Damaged and hostile models end in one EngineError, soon, without taking memory."""

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.engine import InferenceSession
from sparsify.errors import EngineError

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
HUGE = 2**40


def model(nodes, initializers=(), sparse_initializers=(), opset=20, functions=(), inputs=(X,)):
    graph = helper.make_graph(
        nodes, "g", list(inputs), [Y], list(initializers), sparse_initializer=list(sparse_initializers)
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9).SerializeToString()


def node(operator, inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, list(inputs), list(outputs), **attributes)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def floats(name, *shape):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def tensor(name, dims, raw=b""):
    return TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, raw_data=raw)


def sparse(values, indices, dims):
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(indices, np.int64), "i"),
        dims,
    )


def recursive():
    imports = [helper.make_opsetid("own", 1)]
    bodies = {"F": "G", "G": "F"}
    functions = [
        helper.make_function("own", name, ["a"], ["b"], [helper.make_node(calls, ["a"], ["b"], domain="own")], imports)
        for name, calls in bodies.items()
    ]
    return model([helper.make_node("F", ["x"], ["y"], domain="own")], functions=functions)


def nested(depth):
    """An If in an If in an If; the other branch is always a Relu."""
    leaf = helper.make_graph([node("Relu", ["x"], ["leaf"])], "leaf", [], [_untyped("leaf")])
    inner = leaf
    for i in range(1, depth):
        choice = node("If", ["c"], [f"out{i}"], then_branch=inner, else_branch=leaf)
        inner = helper.make_graph([choice], f"g{i}", [], [_untyped(f"out{i}")])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    return model([node("If", ["c"], then_branch=inner, else_branch=leaf)], inputs=(X, condition))


def _untyped(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


WHEN_OPENED = {
    "empty": (b"", "no graph"),
    "text": (b"this is no model", "not an ONNX file"),
    "cut short": (model([node("MatMul", ["x", "w"])], [floats("w", 4, 99)])[:-200], "cut short"),
    "no graph": (onnx.ModelProto(ir_version=9).SerializeToString(), "no graph"),
    "a cycle": (
        model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Exp", ["b"])]),
        "cycle",
    ),
    "a node that reads itself": (model([node("Add", ["x", "y"])]), "cycle"),
    "a missing weight": (model([node("MatMul", ["x", "w"])]), "reads 'w'"),
    "a missing output": (model([node("Relu", ["x"], ["z"])]), "output 'y'"),
    "a value computed twice": (model([node("Relu", ["x"]), node("Exp", ["x"])]), "computed twice"),
    "too little data": (model([node("MatMul", ["x", "w"])], [tensor("w", [4, 5], b"1234")]), "shape"),
    "a huge weight without data": (model([node("MatMul", ["x", "w"])], [tensor("w", [4, HUGE])]), "GiB"),
    "a negative shape": (model([node("MatMul", ["x", "w"])], [tensor("w", [4, -5])]), "negative"),
    "too many axes": (model([node("Add", ["x", "w"])], [tensor("w", [1] * 99, b"1234")]), "axes"),
    "an unknown element type": (
        model([node("Add", ["x", "w"])], [TensorProto(name="w", dims=[1], data_type=99, raw_data=b"1234")]),
        "element type 99",
    ),
    "a sparse index out of range": (
        model([node("MatMul", ["x", "w"])], (), [sparse([1], [20], [4, 5])]),
        "outside",
    ),
    "a negative sparse index": (
        model([node("MatMul", ["x", "w"])], (), [sparse([1], [-1], [4, 5])]),
        "outside",
    ),
    "a sparse coordinate out of range": (
        model([node("MatMul", ["x", "w"])], (), [sparse([1], [[1, 7]], [4, 5])]),
        "outside",
    ),
    "fewer sparse indices than values": (
        model([node("MatMul", ["x", "w"])], (), [sparse([1, 2], [3], [4, 5])]),
        "cannot have indices",
    ),
    "a huge sparse weight": (model([node("MatMul", ["x", "w"])], (), [sparse([1], [3], [4, HUGE])]), "GiB"),
    "many large sparse weights": (
        model(
            [node("Relu", ["x"])],
            (),
            [
                helper.make_sparse_tensor(
                    numpy_helper.from_array(np.ones(1, np.float32), f"w{i}"), ints("i", 3), [2**15, 2**14]
                )
                for i in range(3)
            ],
        ),
        "far more memory",
    ),
    "a huge constant": (
        model([node("ConstantOfShape", ["s"], ["w"]), node("Add", ["x", "w"])], [ints("s", HUGE)]),
        "GiB",
    ),
    "large constants again and again": (
        model(
            [node("Expand", ["w0", "s"], [f"a{i}"]) for i in range(5)] + [node("Relu", ["x"])],
            [ints("s", 2**24, 4), floats("w0", 1)],
        ),
        "far more memory",
    ),
    "a huge range": (
        model(
            [node("Range", ["a", "b", "c"], ["w"]), node("Add", ["x", "w"])],
            [ints("a"), ints("b"), ints("c")],
        ),
        "Range",
    ),
    "functions that call each other": (recursive(), "calls itself"),
    "graphs nested too deeply": (nested(25), "nested too deeply"),
    "a name that is no text": (model([node("Relu", ["x"])]).replace(b"Relu", b"R\xff\xfeu"), "not text"),
    "an unknown type of input": (
        model([node("Relu", ["x"])], inputs=(helper.make_tensor_value_info("x", 99, [4]),)),
        "element type 99",
    ),
    "a future opset": (model([node("Relu", ["x"])], opset=999), "opset 999"),
    "a stone-age opset": (model([node("Relu", ["x"])], opset=1), "opset 1;"),
}
WHEN_RUN = {
    "a gather out of range": (model([node("Gather", ["x", "i"], axis=1)], [ints("i", 9)]), "beyond"),
    "a reshape to another size": (model([node("Reshape", ["x", "s"])], [ints("s", 7, -1)]), "Reshape"),
    "a reshape to nonsense": (model([node("Reshape", ["x", "s"])], [ints("s", -1, -5)]), "Reshape"),
    "an expansion to something huge": (model([node("Expand", ["x", "s"])], [ints("s", HUGE, 2, 4)]), "GiB"),
    "padding to something huge": (model([node("Pad", ["x", "p"])], [ints("p", 0, 0, 0, HUGE)]), "GiB"),
    "repeats without end": (model([node("Tile", ["x", "r"])], [ints("r", HUGE, 2)]), "GiB"),
    "weights that do not fit": (model([node("MatMul", ["x", "w"])], [floats("w", 5, 5)]), "fit"),
    "a convolution of no plane": (model([node("Conv", ["x", "w"])], [floats("w", 5, 5, 3, 3)]), "Conv"),
    "a stride of zero": (
        model([node("Reshape", ["x", "s"], ["p"]), node("Conv", ["p", "w"], strides=[0, 1])],
              [ints("s", -1, 1, 2, 2), floats("w", 1, 1, 1, 1)]),
        "positive",
    ),
    "a slice of step zero": (
        model([node("Slice", ["x", "a", "b", "c", "a"])], [ints("a", 0), ints("b", 1), ints("c", 0)]),
        "Slice",
    ),
    "an axis that is not there": (model([node("Softmax", ["x"], axis=7)]), "axis 7"),
    "an attribute of the wrong kind": (model([node("Transpose", ["x"], perm=[0, 0])]), "Transpose"),
    "an operator that nobody knows": (model([node("Frobnicate", ["x"])]), "onnxruntime"),
    "too few inputs": (model([node("Add", ["x"])]), "Add"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHEN_OPENED)
def test_refused_when_opened(name):
    data, message = WHEN_OPENED[name]
    with pytest.raises(EngineError, match=message):
        InferenceSession(data)


@pytest.mark.parametrize("name", WHEN_RUN)
def test_refused_when_run(name):
    data, message = WHEN_RUN[name]
    with pytest.raises(EngineError, match=message):
        InferenceSession(data).run(None, {"x": np.ones((2, 4), np.float32)})


def test_computed_index_out_of_range():
    index = helper.make_tensor_value_info("i", TensorProto.INT64, [1])
    session = InferenceSession(model([node("Gather", ["x", "i"], axis=1)], inputs=(X, index)))
    x = np.ones((2, 4), np.float32)
    assert session.run(None, {"x": x, "i": np.array([-4])})[0].shape == (2, 1)
    for wrong in (4, -5, 2**60):
        with pytest.raises(EngineError, match="range"):
            session.run(None, {"x": x, "i": np.array([wrong])})


def test_missing_file(tmp_path):
    with pytest.raises(EngineError, match="no model file"):
        InferenceSession(tmp_path / "none.onnx")


MUTATIONS = """
import resource, sys
import numpy as np
import onnx
from onnx import numpy_helper
from sparsify.engine import InferenceSession
from sparsify.errors import EngineError

base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rng = np.random.default_rng(int(sys.argv[1]))
text = '''g (float[n,2,6,6] x) => (float[n,k] y) {
    a = Conv <pads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (x, w)
    b = BatchNormalization(a, s, s, s, s)
    c = Relu(b)
    d = MaxPool <kernel_shape: ints = [2, 2]> (c)
    e = Reshape(d, shape)
    f = Gemm <transB: int = 1> (e, v)
    y = Softmax(f)
}'''
graph = onnx.parser.parse_graph(text)
weights = {"w": np.ones((3, 2, 3, 3), "f"), "s": np.ones(3, "f"), "v": np.ones((5, 12), "f")}
weights["shape"] = np.array([0, -1])
graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
data = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
data = np.frombuffer(data.SerializeToString(), np.uint8)
x = np.ones((1, 2, 6, 6), np.float32)
ran = refused = 0
for _ in range(int(sys.argv[2])):
    broken = data.copy()
    places = rng.integers(0, len(data), rng.integers(1, 5))
    broken[places] = rng.integers(0, 256, len(places))
    if rng.random() < 0.2:
        broken = np.delete(broken, slice(places[0], places[0] + rng.integers(1, 30)))
    try:
        InferenceSession(broken.tobytes(), threads=1).run(None, {"x": x})
        ran += 1
    except EngineError as error:
        assert len(str(error)) > 40, error
        refused += 1
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
print(ran, refused, round(grown))
"""


def test_random_mutations():
    """Whatever bytes change: a result or one EngineError, in a process whose memory hardly grows."""
    code = textwrap.dedent(MUTATIONS)
    done = subprocess.run([sys.executable, "-c", code, "1", "600"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ran, refused, megabytes = map(int, done.stdout.split())
    assert ran > 50 and refused > 50
    assert megabytes < 1000
