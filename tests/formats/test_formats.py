"""Every format that is found: the same masks in run and file, the same bytes again, and damaged files."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sparsify import registry
from sparsify.errors import FormatError, RecipeError
from sparsify.files import DiskError
from sparsify.formats import densified, load_format, read_model
from sparsify.formats._module import build_module
from sparsify.sources import export, open_source
from sparsify.topology.digest import mask_digest
from sparsify.training.checkpoint import read_checkpoint

FORMATS = registry.names("formats")


@pytest.mark.parametrize("name", FORMATS)
def test_masks_are_the_same_in_run_and_file(name, finished_run, tmp_path):
    masks = read_checkpoint(finished_run / "checkpoint.pt")["masks"]
    in_run = mask_digest({key: mask.numpy() for key, mask in masks.items()})
    path = tmp_path / f"model{load_format(name).SUFFIX}"
    written = export(finished_run, name, path)
    found = read_model(path)
    assert written.digest == found.digest() == found.metadata.mask_digest == in_run
    for key, mask in masks.items():
        assert np.array_equal(found.masks()[key], mask.numpy())
        assert not np.signbit(found.tensors[key][~mask.numpy()]).any(), "a weight outside its mask is -0.0"


@pytest.mark.parametrize("name", FORMATS)
def test_weights_survive_bit_for_bit(name, finished_run, tmp_path):
    path = tmp_path / f"model{load_format(name).SUFFIX}"
    export(finished_run, name, path)
    trained = read_checkpoint(finished_run / "checkpoint.pt")
    found = read_model(path)
    for key, mask in trained["masks"].items():
        weight = torch.where(mask, trained["model"][key], 0.0)
        assert found.tensors[key].tobytes() == weight.numpy().tobytes()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("source", ["lenet-300-100-digits", "wrn-22-2-cifar10"])
def test_same_input_same_bytes_and_nothing_of_this_machine(name, source, tmp_path):
    suffix = load_format(name).SUFFIX
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    export(source, name, first)
    export(source, name, second)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_bytes().decode("latin-1")
    assert not re.search(r"[\w/]+/site-packages|\.py\b|/(home|root|tmp)/", text)
    assert read_model(first).metadata.origin == "initialised"


def test_a_connection_whose_weight_is_zero_is_still_one(tmp_path):
    model = open_source("lenet-300-100-digits")
    name = "1.weight"
    position = int(np.flatnonzero(model.tensors[name])[5])
    model.tensors[name].reshape(-1)[position] = 0.0
    metadata = model.metadata.model_copy(update={"live_zeros": {name: [position]}})
    model = dataclasses.replace(model, metadata=metadata)
    for format in FORMATS:
        module = load_format(format)
        path = tmp_path / f"zero{module.SUFFIX}"
        assert module.write(model, path).digest == model.metadata.mask_digest
        assert read_model(path).masks()[name].reshape(-1)[position]


def test_live_zeros_of_a_run_are_recorded(tmp_path):
    """SET grows at random, also from pixels that are never lit: their weights stay exactly 0."""
    from sparsify.recipe import load_recipe
    from sparsify.training.loop import train

    changes = ["training.steps=30", "topology.method=set", "topology.delta_t=5", "topology.t_end=1.0"]
    run = train(load_recipe(None, changes), tmp_path / "run").folder
    model = open_source(run)
    assert model.metadata.live_zeros
    masks = read_checkpoint(run / "checkpoint.pt")["masks"]
    assert model.digest() == mask_digest({name: mask.numpy() for name, mask in masks.items()})
    assert export(run, "onnx", tmp_path / "model.onnx").digest == model.digest()


def test_safetensors_opens_in_other_tools(finished_run):
    tensors = load_file(finished_run / "model.safetensors")
    assert tensors["1.weight"].shape == (300, 64)
    header_size = int.from_bytes((finished_run / "model.safetensors").read_bytes()[:8], "little")
    assert header_size % 8 == 0
    config = json.loads((finished_run / "config.json").read_text())
    assert config["method"] == "rigl" and config["training"]["steps"] == 60


def test_onnx_is_valid_dynamic_and_agrees_with_torch(finished_run, tmp_path):
    written = export(finished_run, "onnx", tmp_path / "model.onnx")
    assert written.relative_error < 1e-5
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == 20
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    module = build_module(read_model(tmp_path / "model.onnx"))
    for batch in (1, 5):
        inputs = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(session.run(None, {"input": inputs})[0], expected, rtol=1e-4, atol=1e-5)


def test_run_that_is_not_finished_gives_its_last_checkpoint(tmp_path, short_recipe):
    from sparsify.training.loop import training

    for progress in training(short_recipe, tmp_path / "run"):
        if progress.step == 25:  # one evaluation, and so one checkpoint, at step 23
            break
    model = open_source(tmp_path / "run")
    assert model.metadata.origin == "in training" and model.metadata.training["steps"] == 23


def test_a_dense_twin_computes_numbers_of_the_same_size(finished_run):
    """Else those of a deep network would overflow: each of its layers multiplies them by the norm of its weight."""
    model = open_source(finished_run)
    twin = densified(model)
    for layer in model.layers:
        norms = [np.linalg.norm(each.tensors[layer.name]) for each in (model, twin)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-2)


def test_densified_twin_has_no_zeros_and_the_same_form(finished_run):
    model = open_source(finished_run)
    twin = densified(model)
    assert all(twin.tensors[name].all() for name in model.masks())
    assert {n: t.shape for n, t in twin.tensors.items()} == {n: t.shape for n, t in model.tensors.items()}
    assert twin.metadata.origin == "densified" and twin.metadata.flops == model.metadata.dense_flops
    kept = model.tensors["1.weight"] != 0
    assert np.array_equal(twin.tensors["1.weight"][kept], model.tensors["1.weight"][kept])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.9])
def test_file_cut_short(name, keep, finished_run, tmp_path):
    path = tmp_path / f"model{load_format(name).SUFFIX}"
    export(finished_run, name, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(FormatError, match="not a readable"):
        read_model(path)


def test_changed_weights_are_noticed(finished_run, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "changed.safetensors"
    tensors = load_file(finished_run / "model.safetensors")
    with safe_open(finished_run / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    tensors["1.weight"][0] = 1.0
    save_file(tensors, path, metadata)
    with pytest.raises(FormatError, match="do not give the recorded mask digest"):
        read_model(path)
    record = json.loads(metadata["sparsify"])
    record["layers"]["1.weight"]["shape"] = [2, 2]
    save_file(tensors, path, {"sparsify": json.dumps(record)})
    with pytest.raises(FormatError, match=r"weight 1.weight of shape \[2, 2\] is not in it"):
        read_model(path)
    save_file(tensors, path, {"sparsify": json.dumps({**record, "flops": "many"})})
    with pytest.raises(FormatError, match=r"'flops' = 'many' is not possible"):
        read_model(path)


def test_third_party_safetensors(tmp_path):
    save_file({"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}, tmp_path / "other.safetensors")
    model = read_model(tmp_path / "other.safetensors")
    assert model.metadata is None and model.masks()["w"].sum() == 4
    with pytest.raises(FormatError, match="was not written by sparsify"):
        export(tmp_path / "other.safetensors", "onnx", tmp_path / "other.onnx")


def test_existing_file_is_replaced_only_by_force(finished_run, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    with pytest.raises(FormatError, match="exists. Give --force to replace it"):
        export(finished_run, "onnx", path)
    assert path.read_text() == "mine"
    assert export(finished_run, "onnx", path, force=True).size == path.stat().st_size


def test_sources_that_are_not_there(tmp_path, finished_run):
    with pytest.raises(RecipeError, match="no run folder, model file or recipe called 'lenet'"):
        open_source("lenet")
    with pytest.raises(FormatError, match="There is no file .*missing.onnx"):
        open_source(tmp_path / "missing.onnx")
    with pytest.raises(FormatError, match="is a folder but neither a run"):
        open_source(tmp_path)
    with pytest.raises(RecipeError, match="is fixed: settings can be changed for recipes only"):
        open_source(finished_run, ["topology.sparsity=0.5"])
    with pytest.raises(FormatError, match=r"does not end in .onnx"):
        export(finished_run, "onnx", tmp_path / "model.bin")
    with pytest.raises(DiskError, match="Check that"):
        (tmp_path / "file").write_text("")
        export(finished_run, "safetensors", tmp_path / "file/model.safetensors")


def test_a_model_written_with_the_graph_of_another_is_the_one_that_torch_exports(tmp_path):
    """Same bits as an export through torch; another network is left to that."""
    sparse, other = (open_source("lenet-300-100-digits", [f"topology.sparsity={s}"]) for s in (0.9, 0.5))
    for name, model in (("sparse", sparse), ("other", other)):
        load_format("onnx").write(model, tmp_path / f"{name}.onnx")
    assert load_format("onnx").write_like(tmp_path / "sparse.onnx", other, tmp_path / "like.onnx")
    assert (tmp_path / "like.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    wide = open_source("lenet-300-100-digits", ["model.width_multiplier=2.0"])
    assert not load_format("onnx").write_like(tmp_path / "sparse.onnx", wide, tmp_path / "wide.onnx")
    assert not (tmp_path / "wide.onnx").exists()
