"""Interrupted runs continue as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparsify.errors import CheckpointError, InterruptedTraining
from sparsify.recipe import load_recipe
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.loop import train, training

CHANGES = ["training.epochs=12", "training.evaluate_every=1.0", "topology.delta_t=10", "topology.growth_batches=7"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(folder: Path) -> dict[str, str]:
    """Digests of everything that a run leaves: weights, masks, optimizer, metrics."""
    content = read_checkpoint(folder / "checkpoint.pt")
    tensors = hashlib.sha256()
    for group in ("model", "masks"):
        for name in sorted(content[group]):
            tensors.update(content[group][name].numpy().tobytes())
    for _, slot in sorted(content["optimizer"]["state"].items()):
        tensors.update(slot["momentum_buffer"].numpy().tobytes())
    files = {name: digest(folder / name) for name in ("model.safetensors", "metrics.jsonl", "config.json")}
    return {**files, "checkpoint": tensors.hexdigest()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return outcome(train(load_recipe(None, CHANGES), tmp_path_factory.mktemp("whole") / "run").folder)


def start_process(folder: Path) -> subprocess.Popen[bytes]:
    changes = [part for change in CHANGES for part in ("--set", change)]
    command = [sys.executable, "-m", "sparsify", "train", "--out", str(folder), *changes]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    path = folder / "metrics.jsonl"
    for _ in range(30000):  # a minute, on a machine with other things to do
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    raise AssertionError("the run did not get so far")


def test_killed_at_a_random_step_and_resumed(tmp_path, uninterrupted):
    lines = random.randint(1, 10)
    print(f"killed after {lines} lines of metrics")  # shown if the test fails
    process = start_process(tmp_path / "run")
    wait_for_lines(tmp_path / "run", lines, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run/model.safetensors").exists()
    train(out=tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("steps", [1, 37, 66, 200])
def test_stopped_between_steps_and_resumed(tmp_path, uninterrupted, steps):
    run = training(load_recipe(None, CHANGES), tmp_path / "run")
    with pytest.raises(InterruptedTraining, match="To continue: sparsify train --resume --out"):
        for progress in run:
            if progress.step == steps:
                os.kill(os.getpid(), signal.SIGTERM)
    assert read_checkpoint(tmp_path / "run/checkpoint.pt")["progress"]["step"] == steps + 1
    assert outcome(train(out=tmp_path / "run", resume=True).folder) == uninterrupted


def test_signal_handlers_are_put_back(tmp_path, short_recipe):
    before = signal.getsignal(signal.SIGINT)
    train(short_recipe, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_a_finished_run_changes_nothing(tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "run")
    result = train(out=tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(finished_run)
    assert result.line["step"] == 60


def test_resume_with_another_recipe_names_what_differs(tmp_path, finished_run):
    other = load_recipe(None, ["training.steps=60", "optimizer.lr=0.5"])
    with pytest.raises(CheckpointError, match=r"optimizer\.lr is 0\.05 there and 0\.5 now"):
        train(other, finished_run, resume=True)


def test_resume_where_there_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="There is no run in .* to resume"):
        train(out=tmp_path, resume=True)


def test_existing_folder_is_not_touched(finished_run, short_recipe):
    before = outcome(finished_run)
    with pytest.raises(CheckpointError, match=r"exists and is not empty. To continue the run in it: sparsify train"):
        train(short_recipe, finished_run)
    assert outcome(finished_run) == before


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_checkpoint_cut_short(tmp_path, finished_run, keep):
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run/checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged .* Restore it from a copy"):
        train(out=tmp_path / "run", resume=True)


def test_checkpoint_with_a_flipped_bit(tmp_path, finished_run):
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run/checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        train(out=tmp_path / "run", resume=True)


def test_checkpoint_holds_masks_of_its_own(finished_run):
    content = read_checkpoint(finished_run / "checkpoint.pt")
    for name, mask in content["masks"].items():
        assert mask.dtype == torch.bool
        assert not content["model"][name][~mask].any()
