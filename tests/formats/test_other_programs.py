"""Checkpoints of other programs: shards, torch files, wrappers, pruning masks, and pruning by magnitude."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from sparsify.errors import FormatError, SparsityError
from sparsify.formats import read_model
from sparsify.formats._bits import of_array
from sparsify.formats._prune import prune as prune_weight
from sparsify.report.inspection import inspect
from sparsify.sources import export


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 100))


def converted(source, out, **options) -> dict[str, np.ndarray]:
    return load_file(export(source, "safetensors", out, **options).path)


def test_sharded_folder_is_packed_and_inspected(tmp_path):
    shards = {f"model-{i}-of-3.safetensors": {f"w{i}": np.eye(50, dtype=np.float32) * i} for i in (1, 2, 3)}
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, content in shards.items():
        save_file(content, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, content in shards.items() for key in content}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    path = export(folder, "safetensors", tmp_path / "all.sparse.safetensors", packed=True).path
    found = read_model(path)
    assert all(np.array_equal(found.tensors[key], w) for content in shards.values() for key, w in content.items())
    assert inspect(folder).nonzeros == inspect(path).nonzeros == 150
    assert inspect(folder).mask_digest == inspect(path).mask_digest
    assert read_model(folder / "model.safetensors.index.json").tensors.keys() == found.tensors.keys()


INDEXES = {
    "outside": ({"w": "../other.safetensors"}, "which is not a file beside it"),
    "absent": ({"w": "none.safetensors"}, "which is not a file beside it"),
    "lacking": ({"x": "one.safetensors"}, "lacks the tensor 'x'"),
    "number": ({"w": 3}, "is not the index of a sharded checkpoint"),
    "list": (["w"], "is not the index of a sharded checkpoint"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_broken_index(name, tmp_path):
    weight_map, match = INDEXES[name]
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in (folder / "one.safetensors", tmp_path / "other.safetensors"):
        save_file({"w": np.ones((2, 2), np.float32)}, path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match=match):
        read_model(folder)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoint(suffix, zipped, tmp_path):
    state = {**network().state_dict(), "half": torch.ones(3, 3, dtype=torch.bfloat16), "n": torch.tensor(3)}
    torch.save(state, tmp_path / f"model{suffix}", _use_new_zipfile_serialization=zipped)
    path = export(tmp_path / f"model{suffix}", "safetensors", tmp_path / "out.safetensors").path
    found = read_model(path)
    assert found.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert np.array_equal(found.tensors[name], tensor.float().numpy())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_state_below_a_key(key, tmp_path):
    """As Lightning and training scripts save it, an optimizer beside it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict()
    torch.save({key: model.state_dict(), "optimizer": optimizer, "epoch": 3}, tmp_path / "last.ckpt")
    assert converted(tmp_path / "last.ckpt", tmp_path / "out.safetensors").keys() == model.state_dict().keys()


def test_wrappers_are_taken_off(tmp_path):
    state = OrderedDict((f"module._orig_mod.{name}", t) for name, t in network().state_dict().items())
    torch.save(state, tmp_path / "model.pt")
    assert converted(tmp_path / "model.pt", tmp_path / "out.safetensors").keys() == network().state_dict().keys()


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_pruning_masks_are_applied(form, tmp_path):
    """torch.nn.utils.prune leaves weight_orig and weight_mask; outside the mask +0.0, not -0.0."""
    model = network()
    prune.l1_unstructured(model[2], "weight", 0.9)
    state, expected = model.state_dict(), model[2].weight.detach().numpy()
    if form == "torch":
        source = tmp_path / "model.pt"
        torch.save(state, source)
    else:
        source = tmp_path / "model.safetensors"
        save_file({name: tensor.numpy() for name, tensor in state.items()}, source)
    found = converted(source, tmp_path / "out.safetensors")
    assert found.keys() == network().state_dict().keys()
    assert np.array_equal(found["2.weight"], expected)
    assert not np.signbit(found["2.weight"][found["2.weight"] == 0]).any()


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_objects_in_a_checkpoint_are_not_loaded(tmp_path):
    torch.save({"w": torch.ones(2, 2), "x": Evil(str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    with pytest.raises(FormatError, match="holds Python objects besides tensors"):
        export(tmp_path / "evil.pt", "safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nothing", b"\x80\x02."])
def test_files_that_are_no_checkpoints(content, tmp_path):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(FormatError, match="bad.pt"):
        read_model(tmp_path / "bad.pt")


def test_checkpoints_without_a_model(tmp_path):
    torch.save({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, tmp_path / "two.pt")
    with pytest.raises(FormatError, match=r"several tables of tensors \(a, b\)"):
        read_model(tmp_path / "two.pt")
    torch.save([1, 2], tmp_path / "none.pt")
    with pytest.raises(FormatError, match="no table of tensors"):
        read_model(tmp_path / "none.pt")
    torch.save({"w": torch.ones(2, 2, dtype=torch.complex128)}, tmp_path / "q.pt")
    with pytest.raises(FormatError, match="w is of type torch.complex128, which safetensors cannot hold"):
        read_model(tmp_path / "q.pt")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.9, 0.999])
def test_pruning_is_exact(dtype, sparsity):
    """floor(s n) zeros: the smallest by magnitude, of equal ones those of lower index first; -0.0 goes, NaN stays."""
    weight = np.random.default_rng(0).integers(1, 30, (37, 41)).astype(dtype)
    weight[::2] *= -1
    weight[0, :3] = np.nan, np.inf, -0.0
    found = prune_weight(of_array(weight, "w"), sparsity).array()
    magnitude = np.where(np.isnan(weight), np.inf, np.abs(weight)).reshape(-1)
    magnitude[0] = np.inf
    order = np.lexsort((np.arange(weight.size), np.isnan(weight.reshape(-1)), magnitude))
    expected = weight.copy().reshape(-1)
    expected[order[: int(sparsity * weight.size)]] = 0
    expected[2] = 0
    assert found.tobytes() == expected.reshape(weight.shape).tobytes()


def test_pruning_leaves_biases_and_depthwise_kernels(tmp_path):
    random = np.random.default_rng(0)
    content = {name: random.random(shape, np.float32) for name, shape in {
        "w": (20, 30), "b": (300,), "depthwise": (20, 1, 3, 3), "conv": (20, 4, 3, 3)}.items()}  # fmt: skip
    save_file(content, tmp_path / "in.safetensors")
    found = converted(tmp_path / "in.safetensors", tmp_path / "out.safetensors", prune=0.75)
    assert {name: int((t == 0).sum()) for name, t in found.items()} == {"w": 450, "b": 0, "depthwise": 0, "conv": 540}
    for wrong in (1.0, -0.1, 90.0):
        with pytest.raises(SparsityError, match="cannot be pruned to a sparsity of"):
            export(tmp_path / "in.safetensors", out=tmp_path / "wrong.safetensors", prune=wrong)


def test_our_models_are_not_pruned_again(finished_run, tmp_path):
    with pytest.raises(FormatError, match="was trained by sparsify"):
        export(finished_run, "safetensors", tmp_path / "m.safetensors", prune=0.99)
    with pytest.raises(FormatError, match="is for models of other programs"):
        export("lenet-300-100-digits", "onnx", tmp_path / "m.onnx", prune=0.99)
    export(finished_run, "onnx", tmp_path / "ours.onnx")
    with pytest.raises(FormatError, match="was trained by sparsify"):
        export(tmp_path / "ours.onnx", "onnx", tmp_path / "m.onnx", prune=0.99)


def test_onnx_becomes_safetensors(finished_run, tmp_path):
    export(finished_run, "onnx", tmp_path / "m.onnx", encoding="packed")
    written = export(tmp_path / "m.onnx", "safetensors", tmp_path / "m.sparse.safetensors", packed=True)
    original = read_model(finished_run / "model.safetensors")
    assert written.digest == original.digest()
    found = read_model(written.path)
    assert all(np.array_equal(found.tensors[name], original.tensors[name]) for name in original.masks())


def test_all_tensors_of_a_foreign_onnx_file(tmp_path):
    """Biases too, and weights whichever way their operators want them."""
    weight, bias = np.eye(60, 50, dtype=np.float32), np.ones(50, np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    ports = [helper.make_tensor_value_info(n, 1, ["n", k]) for n, k in (("x", 60), ("y", 50))]
    constants = [numpy_helper.from_array(a, n) for n, a in (("w", weight), ("b", bias))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "in.onnx")
    export(tmp_path / "in.onnx", out=tmp_path / "packed.onnx", encoding="packed")
    for name in ("in", "packed"):
        found = converted(tmp_path / f"{name}.onnx", tmp_path / f"{name}.safetensors")
        assert np.array_equal(found["w"], weight) and np.array_equal(found["b"], bias)
