"""A model that somebody else trained: LPIPS' heads, which torchmetrics ships, pruned, packed and run.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric": five 1x1 convolutions on
the features of AlexNet, 1,152 weights in all.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sparsify.engine import InferenceSession
from sparsify.formats import read_model
from sparsify.sources import export


@pytest.fixture
def heads() -> Path:
    found = importlib.util.find_spec("torchmetrics")
    if found is None or found.origin is None:
        pytest.skip("torchmetrics, which ships the checkpoint, is not installed: pip install 'sparsify-rigl[adapters]'")
    return Path(found.origin).parent / "functional/image/lpips_models/alex.pth"


def largest(weight: np.ndarray, share: float) -> np.ndarray:
    """The weight without that share of its elements, the smallest by magnitude."""
    kept = weight.reshape(-1).copy()
    kept[np.argsort(np.abs(kept), kind="stable")[: int(share * kept.size)]] = 0
    return kept.reshape(weight.shape)


def test_a_checkpoint_is_pruned_and_packed(heads, tmp_path):
    trained = {
        name: tensor.numpy() for name, tensor in torch.load(heads, weights_only=True, map_location="cpu").items()
    }
    written = export(heads, out=tmp_path / "heads.sparse.safetensors", packed=True, prune=0.9)
    assert written.size < 0.5 * written.dense_size
    found = read_model(written.path).tensors
    assert sum(weight.size for weight in trained.values()) == 1152 and found.keys() == trained.keys()
    for name, weight in trained.items():
        assert found[name].tobytes() == largest(weight, 0.9).tobytes()


def test_it_runs_packed_in_onnxruntime_and_in_our_engine(heads, tmp_path):
    """On the features of all layers one above the other the five heads are one convolution."""
    weight = np.concatenate(
        [tensor.numpy() for tensor in torch.load(heads, weights_only=True, map_location="cpu").values()], axis=1
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["distance"]),
    ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1152, 7, 7])]
    ports += [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["n", 1, 1, 1])]
    graph = helper.make_graph(nodes, "lpips", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "in.onnx")
    written = export(tmp_path / "in.onnx", out=tmp_path / "packed.onnx", encoding="packed", prune=0.9)
    assert written.folded == 1 and written.relative_error == 0 and written.size < 0.6 * written.dense_size
    x = np.random.default_rng(0).random((2, 1152, 7, 7), np.float32)
    expected = np.einsum("nchw,c->n", x.astype(np.float64), largest(weight, 0.9).reshape(-1).astype(np.float64)) / 49
    stock = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    for session in (stock, InferenceSession(written.path, threads=1)):
        np.testing.assert_allclose(session.run(None, {"x": x})[0].reshape(-1), expected, rtol=1e-4)
