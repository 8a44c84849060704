"""Every architecture that is found, from recipe to inference: trained, stopped, resumed, exported and run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from sparsify import registry
from sparsify.architectures import reads_tokens
from sparsify.engine import InferenceSession
from sparsify.errors import InterruptedTraining
from sparsify.formats import read_model
from sparsify.formats._module import build_module
from sparsify.recipe import parse_recipe
from sparsify.report.inspection import inspect
from sparsify.sources import export
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.loop import train, training
from tests.smallest import CLASSES, LENGTH, SIDE, options

STEPS, STOP = 5, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a text and with noisy images of three classes."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (folder / "text").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    for split, count in (("train", 4), ("val", 1)):
        for label in range(CLASSES):
            (folder / "images" / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / str(label) / f"{index}.png")
    return folder


def recipe(name: str, seed: int = 0):
    text = {"name": "text", "path": "text", "size": 1800, "test_bytes": 100, "length": LENGTH}
    images = {"name": "image_folder", "path": "images", "classes": CLASSES, "samples": 4 * CLASSES, "size": SIDE}
    return parse_recipe(
        {
            "name": "tiny",
            "model": {"name": name, **options(name)},
            "data": text if reads_tokens(name) else images,
            "topology": {"sparsity": 0.5, "delta_t": 2, "t_end": 1.0},
            "training": {"steps": STEPS, "batch_size": 4, "seed": seed},
            "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        }
    )


@pytest.fixture(scope="module", params=registry.names("architectures"))
def run(request, data, tmp_path_factory) -> Path:
    return train(recipe(request.param), tmp_path_factory.mktemp(request.param) / "run", data=data).folder


def test_inspected(run):
    before, after = inspect(run / "recipe.toml"), inspect(run)
    assert before.plan.steps == STEPS and before.flops < before.dense_flops
    assert after.sparsity == pytest.approx(0.5, abs=0.05) and after.facts["results"]["steps"] == STEPS
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]


def test_resumed_bit_for_bit(run, data, tmp_path):
    from sparsify.recipe import load_recipe

    with pytest.raises(InterruptedTraining):
        for progress in training(load_recipe(run / "recipe.toml"), tmp_path / "run", data=data):
            if progress.step == STOP - 1:
                os.kill(os.getpid(), signal.SIGTERM)
    assert read_checkpoint(tmp_path / "run/checkpoint.pt")["progress"]["step"] == STOP
    train(out=tmp_path / "run", data=data, resume=True)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes()


def test_exported_and_run(run, tmp_path):
    written = [export(run, name, tmp_path / f"model.{name}") for name in ("onnx", "safetensors")]
    assert written[0].digest == written[1].digest == inspect(run).mask_digest
    found = [read_model(file.path) for file in written]
    modules, network = [build_module(model) for model in found], found[0].metadata.network
    tensors = [module.state_dict() for module in modules]
    differing = [name for name, tensor in tensors[0].items() if not torch.equal(tensor, tensors[1][name])]
    assert all(name.endswith("num_batches_tracked") for name in differing)  # an ONNX graph has no use for counts
    sessions = [
        onnxruntime.InferenceSession(written[0].path, providers=["CPUExecutionProvider"]),
        InferenceSession(written[0].path, threads=1),
    ]
    for count in (1, 3):
        for length in (LENGTH, LENGTH // 2) if network.vocabulary else (None,):
            inputs = network.sample(count, length, seed=count)
            with torch.no_grad():
                expected = modules[0](torch.from_numpy(inputs)).numpy()
            for session in sessions:
                (outputs,) = session.run(None, {"input": inputs})
                np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
