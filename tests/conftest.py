"""What many tests share: small recipes, a finished run, the command line in a process of its own."""

from __future__ import annotations

import os

# Small networks on two threads wait for each other; beside another busy process they wait for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU our Triton kernels run in its interpreter. Triton reads this once, at its first import, which is any
# test's that imports transformers or lightning: so it is said here and not in tests/gpu.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from sparsify.data import data_folder
from sparsify.recipe import Recipe, load_recipe

settings.register_profile("untimed", deadline=None)  # no test is timed: other processes may be busy
settings.load_profile("untimed")

SHORT = ["training.steps=60", "training.evaluate_every=1.0", "topology.delta_t=10"]


@pytest.fixture
def short_recipe() -> Recipe:
    """The default recipe, cut to 60 steps with an update every ten."""
    return load_recipe(None, SHORT)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short, finished run. Tests must not change it."""
    from sparsify.training.loop import train

    return train(load_recipe(None, SHORT), tmp_path_factory.mktemp("runs") / "digits").folder


@pytest.fixture
def sparsify(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in an empty folder: sparsify("train", "--steps", "5") -> finished process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sparsify", *arguments]
        environment = {**os.environ, "COLUMNS": "120", **environment}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The data folder if it holds the named set; the test is skipped with the reason otherwise."""

    def find(name: str) -> Path:
        folder = data_folder()
        if not (folder / name).is_dir():
            pytest.skip(f"{name} is not in {folder}; CI fetches it first")
        return folder

    return find
