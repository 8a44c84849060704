"""Weights of ONNX graphs in every encoding: the same outputs, folded at load, smaller, and back again."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import FormatError
from sparsify.files import staging
from sparsify.formats import _blocked, load_format, read_model
from sparsify.formats import onnx as onnx_format
from sparsify.formats._onnx_encode import ENCODERS, encode_weights
from sparsify.formats._onnx_file import of_proto, open_model
from sparsify.formats._onnx_proof import check_folded
from sparsify.formats._onnx_save import save
from sparsify.sources import export, open_source


def sparse_weight(shape, density=0.1, seed=0):
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < density, random.standard_normal(shape), 0).astype(np.float32)


def model_of(weights: dict[str, np.ndarray], opset: int = 17, inputs: bool = False) -> onnx.ModelProto:
    """x [n, k] times each weight in turn, as some other program would write it."""
    nodes, name = [], "x"
    for key in weights:
        nodes.append(helper.make_node("MatMul", [name, key], [f"{key}_out"], name=f"matmul_{key}"))
        name = f"{key}_out"
    first, *_, last = [*weights.values(), *weights.values()]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", first.shape[0]])]
    if inputs:  # before IR version 4 weights were inputs, too
        ports += [helper.make_tensor_value_info(key, TensorProto.FLOAT, w.shape) for key, w in weights.items()]
    result = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", last.shape[1]])
    initializers = [numpy_helper.from_array(weight, key) for key, weight in weights.items()]
    graph = helper.make_graph(nodes, "other", ports, [result], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if inputs else 8)


@st.composite
def position_sets(draw) -> np.ndarray:
    """Ascending positions with short, long and very long gaps."""
    count = draw(st.integers(1, 3000))
    scale = draw(st.sampled_from([1, 3, 20, 300, 5000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gaps = 1 + random.geometric(1 / scale, count)
    gaps[random.random(count) < draw(st.sampled_from([0, 0.01]))] += draw(st.sampled_from([300, 70_000]))
    return np.cumsum(gaps)


@settings(max_examples=100, deadline=None)
@given(position_sets(), st.sampled_from([2, 4]))
def test_blocked_offsets_decode_to_the_positions(positions, width):
    blocked = _blocked.encode(positions, width)
    assert np.array_equal(_blocked.decode(blocked), positions[blocked.order])
    assert np.array_equal(np.unique(blocked.order), np.arange(len(positions)))


@pytest.mark.parametrize("density", [0.0003, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 1])
@pytest.mark.parametrize("values", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_outputs_folding_and_size(encoding, values, density, tmp_path):
    weights = {"a": sparse_weight((300, 200), density), "b": sparse_weight((200, 300), density, 1)}
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model_of(weights), source)
    written = onnx_format.convert(source, out, encoding=encoding, values=values)
    assert written.relative_error == 0 and written.size <= source.stat().st_size + 200
    onnx.checker.check_model(onnx.load(out), full_check=True)
    found = read_model(out)
    assert found.digest() == written.digest
    back = onnx_format.convert(out, tmp_path / "back.onnx", encoding="dense")
    assert back.digest == written.digest
    if values is None:
        assert all(np.array_equal(found.tensors[key], weight.T) for key, weight in weights.items())
        assert not {"Cast", "Constant", "ScatterElements"} & {n.op_type for n in onnx.load(back.path).graph.node}


@pytest.mark.parametrize("source", ["lenet-300-100-digits", "wrn-22-2-cifar10"])
@pytest.mark.parametrize("encoding", ENCODERS)
def test_our_networks_in_every_encoding(source, encoding, tmp_path):
    model, module = open_source(source), load_format("onnx")
    path = tmp_path / "model.onnx"
    written = module.write(model, path, encoding=encoding)
    found = read_model(path)
    assert written.digest == model.metadata.mask_digest and found.metadata == model.metadata
    assert all(found.tensors[name].tobytes() == model.tensors[name].tobytes() for name in model.masks())
    if encoding == "packed":
        assert written.folded and written.size < 0.3 * written.dense_size
    half = module.write(model, tmp_path / "half.onnx", encoding=encoding, values="float16")
    assert half.digest == written.digest and half.size < written.size


def test_a_live_zero_survives_packing(tmp_path):
    model = open_source("lenet-300-100-digits")
    weight = model.tensors["3.weight"]
    position = int(np.flatnonzero(weight)[3])
    weight.reshape(-1)[position] = 1e-12
    written = onnx_format.write(model, tmp_path / "m.onnx", encoding="packed", values="float16")
    found = read_model(written.path)
    assert written.digest == model.metadata.mask_digest
    assert found.metadata.live_zeros == {"3.weight": [position]}


def test_same_input_same_bytes(tmp_path):
    for name in ("first", "second"):
        export("wrn-22-2-cifar10", out=tmp_path / f"{name}.onnx", encoding="packed")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_pruning_a_model_of_another_program(tmp_path):
    random = np.random.default_rng(0)
    weights = {"a": random.standard_normal((64, 100)), "b": random.standard_normal((100, 20))}
    onnx.save(model_of({key: w.astype(np.float32) for key, w in weights.items()}), tmp_path / "in.onnx")
    written = export(tmp_path / "in.onnx", out=tmp_path / "out.onnx", encoding="packed", prune=0.9)
    found = read_model(written.path)
    for name, weight in weights.items():
        dense = weight.astype(np.float32).T
        assert (found.tensors[name] == 0).sum() == int(0.9 * weight.size)
        kept = found.tensors[name] != 0
        assert np.array_equal(found.tensors[name][kept], dense[kept])
        assert np.abs(dense[kept]).min() > np.abs(dense[~kept]).max()


def test_weights_that_are_inputs_too(tmp_path):
    """IR version 3: what callers may override is no constant, so packed weights stop being inputs."""
    onnx.save(model_of({"a": sparse_weight((300, 200))}, opset=11, inputs=True), tmp_path / "in.onnx")
    written = onnx_format.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", encoding="packed")
    assert written.folded == 1
    assert [port.name for port in onnx.load(written.path).graph.input] == ["x"]


def test_an_opset_without_the_operators(tmp_path):
    onnx.save(model_of({"a": sparse_weight((300, 200))}, opset=9), tmp_path / "in.onnx")
    with pytest.raises(FormatError, match="is of ONNX opset 9, which lacks the operators"):
        onnx_format.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", encoding="packed")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_encodings_that_do_not_exist(tmp_path):
    onnx.save(model_of({"a": sparse_weight((300, 200))}), tmp_path / "in.onnx")
    with pytest.raises(FormatError, match="no encoding of ONNX weights called 'pack'. Did you mean 'packed'"):
        export(tmp_path / "in.onnx", out=tmp_path / "out.onnx", encoding="pack")


def test_a_source_that_onnxruntime_cannot_run(tmp_path):
    """An operator of another program: the weights are packed and recounted, and no error is claimed."""
    proto = model_of({"a": sparse_weight((300, 200))})
    proto.graph.node[0].domain = "elsewhere"
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(proto, tmp_path / "in.onnx")
    written = onnx_format.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", encoding="packed")
    assert written.relative_error is None and written.folded is None


def test_weights_that_are_not_folded_are_noticed(tmp_path):
    """The number of non-zeros comes in as an input here, so nothing can be computed before the run."""
    proto = model_of({"a": sparse_weight((300, 200))})
    model, (name,) = encode_weights(of_proto(proto), "packed", None, tmp_path)
    for node in model.proto.graph.node:
        if node.op_type == "ConstantOfShape":
            node.input[0] = "size"
    model.proto.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [1]))
    save(model, tmp_path / "open.onnx")
    with pytest.raises(FormatError, match="does not fold the weights"):
        check_folded(tmp_path / "open.onnx", [name])


def test_weights_in_a_file_of_their_own(tmp_path):
    """What happens above 2 GB, with the bound set to nothing."""
    proto = model_of({"a": sparse_weight((300, 200)), "b": sparse_weight((200, 300))})
    path = tmp_path / "big.onnx"
    with staging(path) as partial:
        save(of_proto(onnx.load_from_string(proto.SerializeToString())), partial, largest=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert path.stat().st_size < 1000
    loaded = open_model(path)
    for tensor in proto.graph.initializer:
        assert loaded.tensors[tensor.name].array().tobytes() == numpy_helper.to_array(tensor).tobytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((1, 300), np.float32)})[0].shape == (1, 300)
    written = onnx_format.convert(path, tmp_path / "packed.onnx", encoding="packed")
    assert written.folded == 2 and written.relative_error == 0


def test_zero_weights_stay_dense(tmp_path):
    onnx.save(model_of({"a": np.zeros((300, 200), np.float32)}), tmp_path / "in.onnx")
    assert onnx_format.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", encoding="packed").folded == 0
