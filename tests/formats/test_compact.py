"""--compact: dead channels go, outputs stay, through everything that leaves channels apart."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import FormatError
from sparsify.formats import onnx as onnx_format
from sparsify.formats import read_model
from sparsify.formats._onnx_compact import compact
from sparsify.formats._onnx_file import OnnxModel, of_proto, open_model
from sparsify.formats._onnx_save import save
from sparsify.report.inspection import inspect
from sparsify.runtimes import load_runtime
from sparsify.sources import export, open_source


class Net:
    """A graph that grows layer by layer, with weights in which channels are dead."""

    def __init__(self, seed: int, planes: int = 3, size: int = 7) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes, self.tensors, self.value, self.channels, self.size = [], {}, "x", planes, size
        self.ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", planes, size, size])]

    def add(self, operator: str, *others: np.ndarray | str, source: str | None = None, **attributes) -> str:
        number, inputs = len(self.nodes), [source or self.value]
        for place, other in enumerate(others):
            name = other if isinstance(other, str) else f"{operator}{number}.{place}"
            if not isinstance(other, str):
                self.tensors[name] = other
            inputs.append(name)
        self.nodes.append(helper.make_node(operator, inputs, [f"v{number}"], f"n{number}", **attributes))
        self.value = f"v{number}"
        return self.value

    def weight(self, shape, axes=(0, 1), dead: float = 0.3) -> np.ndarray:
        """Sparse, with rows and columns of zeros."""
        weight = self.random.standard_normal(shape).astype(np.float32) * (self.random.random(shape) < 0.5)
        for axis in axes:
            gone = self.random.random(shape[axis]) < dead
            weight = np.where(np.expand_dims(gone, [i for i in range(len(shape)) if i != axis]), 0, weight)
        return weight.astype(np.float32)

    def numbers(self, count: int, zeros: float = 0.3) -> np.ndarray:
        found = self.random.standard_normal(count) * (self.random.random(count) >= zeros)
        return found.astype(np.float32)

    def conv(self, out: int, kernel: int = 1, pad: int = 0, bias: bool = True, source: str | None = None) -> str:
        weight = self.weight((out, self.channels, kernel, kernel))
        others = [weight, self.numbers(out)] if bias else [weight]
        self.channels, self.size = out, self.size - kernel + 1 + 2 * pad
        return self.add("Conv", *others, source=source, pads=[pad] * 4, kernel_shape=[kernel] * 2)

    def depthwise(self, pad: int) -> None:
        weight, bias = self.weight((self.channels, 1, 3, 3), axes=(0,)), self.numbers(self.channels)
        self.add("Conv", weight, bias, pads=[pad] * 4, kernel_shape=[3, 3], group=self.channels)
        self.size += 2 * pad - 2

    def norm(self) -> None:
        values = [self.numbers(self.channels) for _ in range(3)]
        self.add("BatchNormalization", *values, self.random.random(self.channels, np.float32) + 0.5)

    def residual(self, pad_kernel: int) -> None:
        before, width = self.value, self.channels
        self.conv(width + 1, pad_kernel, pad_kernel // 2, bias=False)
        self.norm()
        self.add("Relu")
        self.conv(width, 1)
        self.add("Add", before)

    def gate(self) -> None:
        """Squeeze and excitation."""
        before, width, size = self.value, self.channels, self.size
        self.add("GlobalAveragePool")
        self.size = 1
        self.conv(3)
        self.add("Relu")
        self.conv(width)
        self.add("Sigmoid")
        self.add("Mul", before)
        self.size = size

    def fork(self) -> None:
        before, width = self.value, self.channels
        left = self.conv(4)
        self.channels = width
        right = self.conv(3, source=before)
        self.add("Concat", right, source=left, axis=1)
        self.channels = 7

    def head(self, how: str) -> None:
        elements = self.channels * self.size**2
        if how == "mean":
            self.add("ReduceMean", np.array([2, 3]), keepdims=0)
            elements = self.channels
        elif how == "flatten":
            self.add("Flatten")
        else:
            self.add(
                "Reshape",
                np.array([-1, elements if how == "reshape" else -1]) if how == "reshape" else np.array([0, -1]),
            )
        self.add("Gemm", self.weight((6, elements)), self.numbers(6), transB=1)
        self.add("Sigmoid")
        self.add("MatMul", self.weight((6, 5)))
        self.add("Relu")
        self.add("MatMul", self.weight((5, 4)))
        self.add("Add", self.numbers(4))

    def model(self) -> OnnxModel:
        constants = [numpy_helper.from_array(array, name) for name, array in self.tensors.items()]
        shape = ["n", "channels", "height", "width"][: 2 if self.nodes[-1].op_type == "Add" else 4]
        out = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "drawn", self.ports, [out], constants)
        return of_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


LAYERS = {
    "conv": lambda net: net.conv(6, 3, 1),
    "conv without border": lambda net: net.conv(5),
    "conv without bias": lambda net: net.conv(5, bias=False),
    "depthwise": lambda net: net.depthwise(1),
    "depthwise without border": lambda net: net.depthwise(0) if net.size > 3 else None,
    "norm": Net.norm,
    "relu": lambda net: net.add("Relu"),
    "sigmoid": lambda net: net.add("Sigmoid"),
    "leaky": lambda net: net.add("LeakyRelu", alpha=0.3),
    "clip": lambda net: net.add("Clip", np.float32(0), np.float32(6)),
    "scale": lambda net: net.add("Mul", net.numbers(net.channels).reshape(-1, 1, 1)),
    "positions": lambda net: net.add("Add", net.random.random((1, 1, net.size, net.size), np.float32)),
    "residual": lambda net: net.residual(3),
    "residual without border": lambda net: net.residual(1),
    "gate": Net.gate,
    "fork": Net.fork,
    "max pool": lambda net: net.add("MaxPool", kernel_shape=[3, 3], pads=[1] * 4),
    "average pool": lambda net: net.add("AveragePool", kernel_shape=[3, 3], pads=[1] * 4),
    "average pool with border": lambda net: net.add(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "softmax": lambda net: net.add("Softmax", axis=1),
}  # fmt: skip


def outputs(model: OnnxModel, path, inputs: np.ndarray) -> np.ndarray:
    save(model, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": inputs})[0]


@settings(max_examples=120, deadline=None)
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7),
    head=st.sampled_from(["mean", "flatten", "reshape", "copied"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_outputs_stay_and_nothing_dead_is_left(layers, head, seed, tmp_path_factory):
    net = Net(seed)
    net.conv(6, 3, 1)
    for layer in layers:
        LAYERS[layer](net)
    net.head(head)
    model, path = net.model(), tmp_path_factory.mktemp("drawn") / "m.onnx"
    inputs = net.random.standard_normal((3, 3, 7, 7)).astype(np.float32)
    before = outputs(model, path, inputs)
    small, found, _ = compact(model)
    onnx.checker.check_model(onnx.load_from_string(_bytes(small, path)), full_check=True)
    np.testing.assert_allclose(outputs(small, path, inputs), before, rtol=1e-4, atol=1e-4 * np.abs(before).max() + 1e-6)
    assert found.weights == sum(t.size for n, t in model.tensors.items() if n in _weights(model)) - sum(
        t.size for n, t in small.tensors.items() if n in _weights(small)
    )
    again, rest, _ = compact(small)
    # A depthwise convolution that is cut to a single channel is a plain one, which need not hold on to its input.
    assert rest.channels == rest.weights == 0 or any("depthwise" in layer for layer in layers)
    np.testing.assert_array_equal(outputs(again, path, inputs), outputs(small, path, inputs))


def _bytes(model: OnnxModel, path) -> bytes:
    save(model, path)
    return path.read_bytes()


def _weights(model: OnnxModel) -> set[str]:
    """Weights of products; depthwise kernels go with their channels and are not counted."""
    plain = [n for n in model.proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    return {n.input[1] for n in plain if all(a.name != "group" for a in n.attribute)}


def two_layers(
    first: np.ndarray, bias: np.ndarray, second: np.ndarray, pad: int, activation: str = "Relu"
) -> OnnxModel:
    net = Net(0, first.shape[1], 5)
    net.add("Conv", first, bias)
    net.add(activation)
    net.add("Conv", second, np.zeros(len(second), np.float32), pads=[pad] * 4)
    return net.model()


def test_a_constant_becomes_bias_where_no_border_is_padded():
    """By hand: channel 1 of 3 is relu(2) = 2 everywhere; without padding it adds 2 times its kernel's sum."""
    first = np.ones((3, 2, 1, 1), np.float32)
    first[1] = 0
    second = np.arange(3 * 9, dtype=np.float32).reshape(1, 3, 3, 3)
    bias = np.array([1, 2, 3], np.float32)
    small, found, _ = compact(two_layers(first, bias, second, pad=0))
    assert (found.channels, found.all_channels, found.nonzeros) == (1, 4, 9)
    biases = [t.array() for n, t in small.tensors.items() if t.shape == (1,)]
    assert biases == [2 * second[0, 1].sum()]
    assert compact(two_layers(first, bias, second, pad=1))[1].channels == 0, "at the border it is no constant"
    negative = np.array([1, -2, 3], np.float32)
    assert compact(two_layers(first, negative, second, pad=1))[1].channels == 1, "but relu(-2) = 0 is"
    half = compact(two_layers(first, np.zeros(3, np.float32), second, pad=0, activation="Sigmoid"))[0]
    assert [t.array() for t in half.tensors.values() if t.shape == (1,)] == [second[0, 1].sum() / 2]


def test_what_a_branch_needs_stays_in_all_branches(tmp_path):
    """Channel 0 is read by nothing after the sum, channel 1 is; both enter a branch that nothing needs."""
    net = Net(0, 2, 4)
    stem = net.add("Conv", np.ones((3, 2, 1, 1), np.float32))
    net.add("Conv", np.ones((4, 3, 1, 1), np.float32))
    last = np.zeros((3, 4, 1, 1), np.float32)
    last[0] = 1  # the branch writes channel 0 only
    net.add("Conv", last)
    net.add("Add", stem)
    reader = np.ones((1, 3, 1, 1), np.float32)
    reader[0, 0] = 0
    net.add("Conv", reader)
    small, found, _ = compact(net.model())
    shapes = [t.shape[:2] for t in small.tensors.values()]
    assert shapes == [(2, 2), (1, 2), (2, 1), (1, 2)], "one channel of a branch stays where none is needed"
    assert found.channels == 1 + 3 + 1


def test_a_network_that_computes_nothing(tmp_path):
    net = Net(0)
    net.conv(6)
    net.tensors["Conv0.0"][:] = 0
    net.add("Relu")
    net.conv(4)
    inputs = np.ones((2, 3, 7, 7), np.float32)
    before = outputs(net.model(), tmp_path / "m.onnx", inputs)
    small, _, _ = compact(net.model())
    np.testing.assert_allclose(outputs(small, tmp_path / "m.onnx", inputs), before, rtol=1e-6)
    assert [t.shape for t in small.tensors.values() if len(t.shape) > 1] == [(1, 3, 1, 1), (4, 1, 1, 1)]


@pytest.mark.parametrize(("source", "sparsity"), [
    ("lenet-300-100-digits", 0.98), ("mobilenet-v1-imagenet", 0.99), ("wrn-22-2-cifar10", 0.995)])  # fmt: skip
def test_our_networks(source, sparsity, tmp_path):
    """The record describes the new file: shapes, counts, digest; and so says inspect."""
    changes = [f"topology.sparsity={sparsity}", "topology.distribution=uniform"]
    plain = inspect(source, changes)
    written = export(source, out=tmp_path / "m.onnx", compact=True, encoding="packed", changes=changes)
    assert written.compacted.channels and written.relative_error < 1e-5
    record, found = read_model(written.path).metadata, inspect(written.path)
    assert record.mask_digest == written.digest == found.mask_digest != plain.mask_digest
    depthwise = sum(row.weights for row in plain.layers if row.shape[1:2] == (1,))
    kept = sum(row.weights for row in found.layers if row.shape[1:2] == (1,))
    assert written.compacted.weights == plain.weights - found.weights - (depthwise - kept) > 0
    assert found.nonzeros < plain.nonzeros and found.flops < plain.flops
    assert record.uncut_shapes and all(record.layers[n].shape != shape for n, shape in record.uncut_shapes.items())


def test_compacting_a_file_of_ours(finished_run, tmp_path):
    """From the run or from its ONNX file: the same."""
    plain = export("lenet-300-100-digits", out=tmp_path / "plain.onnx", changes=["topology.sparsity=0.98"])
    first = export(plain.path, out=tmp_path / "a.onnx", compact=True, encoding="packed")
    second = export("lenet-300-100-digits", out=tmp_path / "b.onnx", compact=True, changes=["topology.sparsity=0.98"])
    assert (first.digest, first.compacted) == (second.digest, second.compacted)
    assert read_model(first.path).metadata == read_model(second.path).metadata


def test_safetensors_of_a_run(finished_run, tmp_path):
    options = {"changes": ["topology.sparsity=0.98"], "compact": True}
    written = export("lenet-300-100-digits", out=tmp_path / "m.sparse.safetensors", packed=True, **options)
    same = export("lenet-300-100-digits", out=tmp_path / "m.onnx", **options)
    assert written.compacted == same.compacted and written.digest == same.digest
    found, graph = read_model(written.path), open_model(same.path)
    assert {n: t.shape for n, t in found.tensors.items()} == {
        n: t.shape for n, t in graph.tensors.items() if n in found.tensors
    }
    assert found.tensors["3.weight"].shape[0] == found.tensors["3.bias"].shape[0] < 100
    run = export(finished_run, out=tmp_path / "run.safetensors", compact=True)
    assert run.relative_error < 1e-5


def test_a_live_zero_moves_with_its_channel(tmp_path):
    model = open_source("lenet-300-100-digits", ["topology.sparsity=0.98"])
    weight = model.tensors["3.weight"]
    row, column = np.argwhere((weight != 0) & (np.count_nonzero(weight, 1, keepdims=True) > 1))[-1]
    weight[row, column] = 1e-12
    written = onnx_format.write(model, tmp_path / "m.onnx", values="float16", compact=True)
    record = read_model(written.path).metadata
    (position,) = record.live_zeros["3.weight"]
    assert position != row * 300 + column and position < np.prod(record.layers["3.weight"].shape)


def test_where_the_graph_is_not_known(tmp_path):
    export("lenet-300-100-digits", out=tmp_path / "m.safetensors", compact=True)
    with pytest.raises(FormatError, match="no longer fit the network"):
        export(tmp_path / "m.safetensors", out=tmp_path / "m.onnx")
    (tmp_path / "other.safetensors").write_bytes(_tensors({"w": np.ones((4, 4), np.float32)}))
    with pytest.raises(FormatError, match="how the layers of .* follow one another"):
        export(tmp_path / "other.safetensors", out=tmp_path / "o.safetensors", compact=True)


def _tensors(content: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save as to_bytes

    return to_bytes(content)


def test_the_command_says_what_it_saved(sparsify, tmp_path):
    done = sparsify("export", "lenet-300-100-digits", "--sparsity", "0.98", "--compact", "--out", "m.onnx", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["compacted"]
    assert 0 < found["channels"] < found["all_channels"] == 410
    assert "channels were cut away" in load_runtime("torch_eager").refuses(tmp_path / "m.onnx")
    onnx_format.write_twin(tmp_path / "m.onnx", read_model(tmp_path / "m.onnx"), tmp_path / "twin.onnx")
    twin = open_model(tmp_path / "twin.onnx")
    weights = [name for name in twin.tensors if name.endswith("weight")]
    assert weights and all(twin.tensors[name].array().all() for name in weights)
