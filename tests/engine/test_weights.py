"""Weights in every form that a file may hold them in become the same dense float32 array."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sparsify.engine.front import build, load
from sparsify.engine.program import Linear
from sparsify.errors import EngineError

SHAPE = (64, 80)  # large enough to stay in the file


@pytest.fixture
def weight(sparse):
    return sparse(*SHAPE, density=0.2)


def model_of(nodes, initializers=(), sparse_initializers=(), name="w"):
    """x @ w with w made by the nodes."""
    product = helper.make_node("MatMul", ["x", name], ["y"])
    graph = helper.make_graph(
        [*nodes, product],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", SHAPE[0]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", SHAPE[1]])],
        list(initializers),
        sparse_initializer=list(sparse_initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def unpacked(model) -> np.ndarray:
    """The dense weight [in, out] of the one Linear that is left, with nothing beside it."""
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    (operation,) = build(load(data), {"x": (3, SHAPE[0])}).operations
    assert isinstance(operation, Linear)
    assert operation.weight.dtype == np.float32
    return np.asarray(operation.weight).T


def coordinates(weight, flat: bool):
    rows, columns = np.nonzero(weight)
    index = rows * weight.shape[1] + columns if flat else np.stack([rows, columns], axis=1)
    values = numpy_helper.from_array(weight[rows, columns], "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(index.astype(np.int64), "i"), weight.shape)


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def test_dense_with_zeros(weight):
    np.testing.assert_array_equal(unpacked(model_of([], [numpy_helper.from_array(weight, "w")])), weight)


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_initializer(weight, flat):
    assert np.array_equal(unpacked(model_of([], sparse_initializers=[coordinates(weight, flat)])), weight)


@pytest.mark.parametrize("flat", [True, False])
def test_constant_sparse_value(weight, flat):
    node = helper.make_node("Constant", [], ["w"], sparse_value=coordinates(weight, flat))
    assert np.array_equal(unpacked(model_of([node])), weight)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats(weight, dtype):
    narrow = weight.astype(dtype)
    cast = helper.make_node("Cast", ["packed"], ["w"], to=onnx.TensorProto.FLOAT)
    model = model_of([cast], [numpy_helper.from_array(narrow, "packed")])
    np.testing.assert_array_equal(unpacked(model), narrow.astype(np.float32))


@pytest.mark.parametrize("axis", [None, 1])
def test_int8_with_scales(weight, rng, axis):
    packed = (weight * 20).astype(np.int8)
    scale = np.float32(0.05) if axis is None else rng.random(SHAPE[1]).astype(np.float32)
    zero = np.int8(3) if axis is None else rng.integers(-3, 3, SHAPE[1]).astype(np.int8)
    arrays = {"packed": packed, "scale": np.asarray(scale), "zero": np.asarray(zero)}
    node = helper.make_node("DequantizeLinear", list(arrays), ["w"], **({} if axis is None else {"axis": axis}))
    model = model_of([node], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    expected = (packed.astype(np.float32) - zero) * scale
    np.testing.assert_allclose(unpacked(model), expected, rtol=1e-6, atol=1e-7)


def test_blocked_offsets(weight):
    """A base for each group of non-zeros and a uint8 offset for each, scattered into zeros."""
    flat = np.flatnonzero(weight)
    flat = np.concatenate([flat, flat[-1:].repeat(-len(flat) % 8)]).reshape(-1, 8)
    base, offset = flat[:, :1].astype(np.uint16), (flat - flat[:, :1]).astype(np.uint8)
    size = np.prod(SHAPE)
    nodes = [
        constant("base", base),
        constant("offset", offset),
        constant("values", weight.reshape(-1)[flat.reshape(-1)].astype(np.float16)),
        constant("size", [size]),
        constant("shape", SHAPE),
        constant("all", [-1]),
        helper.make_node("Cast", ["base"], ["base32"], to=onnx.TensorProto.INT32),
        helper.make_node("Cast", ["offset"], ["offset32"], to=onnx.TensorProto.INT32),
        helper.make_node("Add", ["base32", "offset32"], ["places"]),
        helper.make_node("Reshape", ["places", "all"], ["flat"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Cast", ["values"], ["values32"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ScatterElements", ["zeros", "flat", "values32"], ["dense"]),
        helper.make_node("Reshape", ["dense", "shape"], ["w"]),
    ]
    assert np.array_equal(unpacked(model_of(nodes)), weight.astype(np.float16).astype(np.float32))


def test_bitmask_with_running_sum(weight):
    """Bits unpacked by shifts, the non-zeros found by a running sum, zero in front of them."""
    bits = np.packbits(weight.reshape(-1) != 0, bitorder="little")
    values = np.concatenate([[0], weight[weight != 0]]).astype(np.float32)
    nodes = [
        constant("bits", bits.reshape(-1, 1)),
        constant("powers", 2 ** np.arange(8, dtype=np.uint8)),
        constant("values", values),
        constant("shape", SHAPE),
        constant("zero", np.int64(0)),
        constant("two", np.uint8(2)),
        constant("all", [-1]),
        helper.make_node("Div", ["bits", "powers"], ["shifted"]),
        helper.make_node("Mod", ["shifted", "two"], ["bit"]),
        helper.make_node("Cast", ["bit"], ["bit64"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["bit64", "all"], ["flags"]),
        helper.make_node("CumSum", ["flags", "zero"], ["count"]),
        helper.make_node("Mul", ["count", "flags"], ["places"]),
        helper.make_node("Gather", ["values", "places"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["w"]),
    ]
    assert np.array_equal(unpacked(model_of(nodes)), weight)


def test_mask_times_weight(weight):
    nodes = [helper.make_node("Cast", ["mask"], ["m"], to=1), helper.make_node("Mul", ["dense", "m"], ["w"])]
    arrays = {"dense": weight + 1, "mask": weight != 0}
    model = model_of(nodes, [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    np.testing.assert_array_equal(unpacked(model), (weight + 1) * (weight != 0))


def test_weight_written_transposed(weight):
    node = helper.make_node("Transpose", ["t"], ["w"], perm=[1, 0])
    model = model_of([node], [numpy_helper.from_array(np.ascontiguousarray(weight.T), "t")])
    np.testing.assert_array_equal(unpacked(model), weight)


def test_no_negative_zero_is_left(weight):
    found = unpacked(model_of([], [numpy_helper.from_array(np.where(weight == 0, np.float32(-0.0), weight), "w")]))
    assert not np.signbit(found[found == 0]).any()


def test_external_data(weight, tmp_path):
    model = model_of([], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    np.testing.assert_array_equal(unpacked(path), weight)
    (tmp_path / "m.bin").write_bytes(b"short")
    with pytest.raises(EngineError, match="cut short"):
        load(path)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(EngineError, match="not a file in the model's folder"):
        load(path)
    with pytest.raises(EngineError, match="given as bytes"):
        load(path.read_bytes())


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", ""])
def test_external_data_stays_in_the_folder(weight, tmp_path, location):
    tensor = numpy_helper.from_array(weight, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(weight.tobytes())
    (folder / "m.onnx").write_bytes(model_of([], [tensor]).SerializeToString())
    with pytest.raises(EngineError, match="not a file in the model's folder"):
        load(folder / "m.onnx")
