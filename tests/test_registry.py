"""A new method, distribution, architecture, data set, format or runtime is one new file.

The proof: a copy of the package gets one new file of each kind, nothing else is changed, and the command
line trains, inspects, exports and benchmarks with all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest

import sparsify
from sparsify import registry
from sparsify.architectures import build, reads_tokens
from sparsify.errors import UnknownNameError
from sparsify.methods import Method
from sparsify.runtimes import Runtime

PACKAGE = Path(sparsify.__file__).parent

NEW_FILES = {
    "methods/lazy.py": """
from typing import final
from sparsify.methods import Method

@final
class Lazy(Method):
    updates_masks = True
    def grow_score(self, layer):
        return -layer.weight.abs()
""",
    "topology/distributions/half.py": """
def allocate(shapes, sparsity):
    return {name: 0.5 for name in shapes}
""",
    "architectures/single.py": """
from torch import nn

def build(input_shape, classes, bias: bool = True):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], classes, bias))
""",
    "data/stripes.py": """
import torch
from sparsify.data import DataInfo, Dataset, Images

INFO = DataInfo((1, 4, 4), classes=2, train_samples=64, mean=(0.5,), std=(0.5,))

def load(folder):
    labels = torch.arange(64) % 2
    pixels = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    pixels[labels == 1, :, ::2] = 1
    pixels[labels == 0, :, :, ::2] = 1
    return Dataset(INFO, Images(pixels, labels), Images(pixels, labels))
""",
    "formats/numbers.py": """
import numpy as np
from sparsify.formats import SparseModel, Written
from sparsify.topology.costs import Layer

SUFFIX = ".npz"

def write(model, path):
    np.savez(path, **model.tensors)
    return Written(path, path.stat().st_size, model.digest())

def read(path):
    tensors = dict(np.load(path))
    return SparseModel(tensors, [Layer(n, t.shape, 0) for n, t in tensors.items() if t.ndim > 1], None)
""",
    "runtimes/by_hand.py": """
from typing import final
from sparsify.formats import onnx
from sparsify.runtimes import Runtime

@final
class ByHand(Runtime):
    package = "numpy"
    def load(self, path, threads):
        tensors = onnx.read(path).tensors
        return lambda x: x.reshape(len(x), -1) @ tensors["1.weight"].T + tensors["1.bias"]
""",
}
RECIPE = """
[model]
name = "single"
[data]
name = "stripes"
[topology]
method = "lazy"
distribution = "half"
sparsity = 0.9
delta_t = 5
[training]
steps = 20
batch_size = 16
[optimizer]
lr = 0.1
"""


def test_one_new_file_of_each_kind_is_all_it_takes(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "sparsify", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in NEW_FILES.items():
        (tmp_path / "sparsify" / name).write_text(text)
    (tmp_path / "stripes.toml").write_text(RECIPE)

    def run(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "sparsify", *arguments, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("train", "stripes.toml", "--out", "run")["updates"] == 3
    assert run("inspect", "run")["nonzeros"] == 16
    run("export", "run", "--format", "numbers", "--out", "model.npz")
    assert run("inspect", "model.npz")["nonzeros"] == 16
    run("export", "run", "--format", "onnx", "--out", "model.onnx")
    bench = ("--rounds", "1", "--seconds", "0.001", "--threads", "1")
    report = run("bench", "model.onnx", "--runtime", "by-hand", *bench)
    assert "by_hand" in {row["runtime"] for row in report["rows"]}


@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_method_is_one_small_final_class(name):
    found = registry.load_class("methods", name, Method)
    assert getattr(found, "__final__", False), f"mark {found.__name__} with typing.final"
    assert found.__bases__ == (Method,)
    written = {name: member for name, member in vars(found).items() if not name.startswith("__")}  # not by dataclass
    assert sum(isinstance(member, (FunctionType, property)) for member in written.values()) <= 3
    assert found.__doc__


@pytest.mark.parametrize("name", registry.names("runtimes"))
def test_a_runtime_is_one_final_class(name):
    found = registry.load_class("runtimes", name, Runtime)
    assert getattr(found, "__final__", False) and found.__bases__ == (Runtime,)


@pytest.mark.parametrize("name", registry.names("architectures"))
def test_an_architecture_is_built_from_its_defaults(name):
    import torch

    tokens = reads_tokens(name)
    with torch.device("meta"):
        model = build(name, {}, (9,), 7, 40) if tokens else build(name, {}, (3, 32, 32), 7)
        sample = torch.zeros(2, 9, dtype=torch.int64) if tokens else torch.zeros(2, 3, 32, 32)
    assert model.eval()(sample).shape == ((2, 9, 7) if tokens else (2, 7))


@pytest.mark.parametrize("name", registry.names("formats"))
def test_a_format_has_a_suffix_a_writer_and_a_reader(name):
    module = registry.load("formats", name)
    assert module.SUFFIX.startswith(".") and callable(module.write) and callable(module.read)


def test_names_are_matched_without_regard_to_dashes_and_capitals():
    assert registry.find("topology/distributions", "Erdos-Renyi-Kernel") == "erdos_renyi_kernel"
    with pytest.raises(UnknownNameError, match="no data set called 'imagenot'"):
        registry.find("data", "imagenot")


def test_no_file_is_much_longer_than_a_few_screens():
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 320}
    assert not long
