"""Networks drawn at random, compared with the float64 oracle before any pass and with onnxruntime."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparsify.engine import InferenceSession
from sparsify.engine.front import load
from sparsify.engine.front.importing import import_graph
from sparsify.engine.interpreter import interpret

SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 12, 15, 16, 17])
CHANNELS = st.sampled_from([1, 2, 3, 8, 16, 26, 27, 28, 33])
DENSITIES = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])
UNARY = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Abs", "Softplus"]


class Net:
    """A graph as it grows; `draw` chooses."""

    def __init__(self, draw):
        self.draw, self.nodes, self.weights, self.count = draw, [], [], 0
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))
        self.shape = (draw(st.sampled_from([1, 2, 3, 16, 17])), draw(CHANNELS), draw(SIZES), draw(SIZES))
        self.input_shape, self.name = self.shape, "x"
        self.seen = {self.name: self.shape}

    def add(self, operator, inputs, shape, **attributes):
        self.count += 1
        self.name, self.shape = f"v{self.count}", tuple(shape)
        self.nodes.append(helper.make_node(operator, inputs, [self.name], **attributes))
        self.seen[self.name] = self.shape

    def weight(self, *shape, density=1.0, positive=False):
        name = f"w{len(self.weights)}"
        values = self.rng.random(shape) + 0.5 if positive else self.rng.standard_normal(shape) * 0.5
        values = values * (self.rng.random(shape) < density)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self):
        n, c, h, w = self.shape
        groups = self.draw(st.sampled_from([g for g in (1, 2, c) if c % g == 0]))
        kernel = [self.draw(st.sampled_from([1, 2, 3])) for _ in "hw"]
        stride = [self.draw(st.sampled_from([1, 2, 3])) for _ in "hw"]
        dilation = [self.draw(st.sampled_from([1, 1, 2])) for _ in "hw"]
        pads = [self.draw(st.integers(0, 2)) for _ in range(4)]
        size = [
            (s + pads[i] + pads[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, s in enumerate((h, w))
        ]
        if min(size) < 1:
            return
        outputs = c if groups == c else groups * self.draw(st.integers(1, 14))
        inputs = [self.name, self.weight(outputs, c // groups, *kernel, density=self.draw(DENSITIES))]
        if self.draw(st.booleans()):
            inputs.append(self.weight(outputs))
        attributes = {"pads": pads, "strides": stride, "dilations": dilation, "group": groups}
        self.add("Conv", inputs, (n, outputs, *size), **attributes)

    def batch_norm(self):
        c = self.shape[1]
        statistics = [self.weight(c), self.weight(c), self.weight(c), self.weight(c, positive=True)]
        self.add("BatchNormalization", [self.name, *statistics], self.shape)

    def unary(self):
        self.add(self.draw(st.sampled_from(UNARY)), [self.name], self.shape)

    def clip(self):
        low, high = self.weight(), self.weight()
        limits = sorted(float(numpy_helper.to_array(w)) for w in self.weights[-2:])
        for tensor, limit in zip(self.weights[-2:], limits, strict=True):
            tensor.CopyFrom(numpy_helper.from_array(np.array(limit, np.float32), tensor.name))
        self.add("Clip", [self.name, low, high], self.shape)

    def residual(self):
        fitting = [name for name, shape in self.seen.items() if shape == self.shape]
        self.add(
            self.draw(st.sampled_from(["Add", "Mul", "Sub"])),
            [self.name, self.draw(st.sampled_from(fitting))],
            self.shape,
        )

    def pool(self):
        n, c, h, w = self.shape
        if min(h, w) >= 2:
            operator = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
            self.add(operator, [self.name], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])

    def linear(self):
        k, o = self.shape[-1], self.draw(CHANNELS)
        self.add("MatMul", [self.name, self.weight(k, o, density=self.draw(DENSITIES))], (*self.shape[:-1], o))
        if self.draw(st.booleans()):
            self.add("Add", [self.name, self.weight(o)], self.shape)

    def layer_norm(self):
        size = self.shape[-1]
        inputs = [self.name, self.weight(size), self.weight(size)]
        self.add("LayerNormalization", inputs, self.shape, axis=-1, epsilon=1e-2)

    def transpose(self):
        perm = self.draw(st.permutations(range(len(self.shape))))
        self.add("Transpose", [self.name], [self.shape[i] for i in perm], perm=list(perm))

    def softmax(self):
        self.add("Softmax", [self.name], self.shape, axis=self.draw(st.integers(0, len(self.shape) - 1)))

    def mean(self):
        axis = self.draw(st.integers(0, len(self.shape) - 1))
        shape = [1 if i == axis else s for i, s in enumerate(self.shape)]
        axes = numpy_helper.from_array(np.array([axis]), f"w{len(self.weights)}")
        self.weights.append(axes)
        self.add("ReduceMean", [self.name, axes.name], shape)

    def model(self):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.input_shape)],
            [helper.make_tensor_value_info(self.name, TensorProto.FLOAT, self.shape)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


STEPS = [
    Net.conv, Net.conv, Net.conv, Net.batch_norm, Net.unary, Net.clip, Net.residual, Net.pool, Net.linear,
    Net.layer_norm, Net.transpose, Net.softmax, Net.mean,
]  # fmt: skip


@st.composite
def networks(draw):
    net = Net(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9)):
        step(net)
    if not net.nodes:
        net.unary()
    return net.model().SerializeToString()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(networks())
def test_random_network(model):
    graph = load(model)
    shape = tuple(graph.inputs[0].shape)
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    (exact,) = interpret(import_graph(graph, {"x": shape}), {"x": x}).values()
    (y,) = InferenceSession(model, threads=2).run(None, {"x": x})
    assert y.shape == exact.shape
    assert np.isfinite(exact).all()
    assert np.abs(y - exact).max() <= 1e-4 * max(1.0, np.abs(exact).max())
