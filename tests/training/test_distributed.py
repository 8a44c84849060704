"""Many processes, started by torchrun as a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparsify.data import load_data
from sparsify.recipe import load_recipe, parse_recipe
from sparsify.training.checkpoint import read_checkpoint
from sparsify.training.distributed import World
from sparsify.training.metrics import read_metrics

STEPS, DELTA_T = 60, 5
CHANGES = [f"training.steps={STEPS}", f"topology.delta_t={DELTA_T}", "topology.t_end=0.9", "topology.growth_batches=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(processes: int, *arguments: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    free_port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*(torchrun + free_port if processes > 1 else [sys.executable]), *arguments]


def changed(*changes: str) -> list[str]:
    return [part for change in (*CHANGES, *changes) for part in ("--set", change)]


def train(processes: int, out: Path, *changes: str) -> dict:
    """Train in so many processes; returns the content of the checkpoint."""
    arguments = ["-m", "sparsify", "train", "--out", str(out), *changed(*changes)]
    done = subprocess.run(command(processes, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Test accuracy") == 1, "one rank alone speaks"
    return read_checkpoint(out / "checkpoint.pt")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("processes", [2, 4])
def test_same_masks_and_weights_as_one_process_with_the_same_global_batch(tmp_path, processes):
    """Bit for bit those of one process that adds the same parts up; every update compares the ranks' masks."""
    many = train(processes, tmp_path / "many")
    one = train(1, tmp_path / "one", f"training.accumulate={processes}")
    assert many["progress"]["updates"] == one["progress"]["updates"] == 10
    assert same(many["masks"], one["masks"])
    assert same(many["model"], one["model"])
    assert read_metrics(tmp_path / "many") == read_metrics(tmp_path / "one")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_share_the_batch_without_repeats(size):
    data = load_data("digits", {})
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    shares = [data.train_batch(3, 12, seed=1, share=world.share) for world in worlds]
    assert {len(labels) for _, labels in shares} == {12 // size}
    for whole, parts in zip(data.train_batch(3, 12, seed=1), zip(*shares, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole)


DISAGREE = """
import sys

import torch
from sparsify.errors import SparsifyError
from sparsify.topology.masks import Masks
from sparsify.training.distributed import join_world

try:
    with join_world(torch.device("cpu")) as world:
        masks = {"fc1.weight": torch.ones(3, 4).bool(), "fc2.weight": torch.ones(2, 3).bool()}
        world.check_masks(Masks(masks), 100)
        masks["fc2.weight"][0, 0] = world.rank != 1
        world.check_masks(Masks(masks), 200)
except SparsifyError as error:
    print(f"rank {world.rank}: {error}", flush=True)
    sys.exit(2)
"""


def test_ranks_with_different_masks_all_stop_with_layer_and_rank(tmp_path):
    (tmp_path / "disagree.py").write_text(DISAGREE)
    arguments = command(2, str(tmp_path / "disagree.py"))
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    for rank in (0, 1):
        assert f"rank {rank}: After step 200 the ranks hold different masks: fc2.weight on rank 1" in done.stdout


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(12000):
        if path.exists():
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError(f"{path} did not appear")


def test_a_killed_rank_ends_the_others_and_the_run_goes_on_elsewhere(tmp_path):
    run = tmp_path / "run"
    long = ["training.steps=600", "training.batch_size=48", "training.evaluate_every=0.3"]
    arguments = command(2, "-m", "sparsify", "train", "--out", str(run), *changed(*long))
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(run / "checkpoint.pt", process)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Another process of this run ended or cannot be reached" in errors
    assert not (run / "model.safetensors").exists()
    shutil.copytree(run, tmp_path / "copy")
    for processes, folder in ((1, run), (3, tmp_path / "copy")):
        arguments = command(processes, "-m", "sparsify", "train", "--resume", "--out", str(folder), "--json")
        done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["step"] == 600
        assert (folder / "model.safetensors").exists()


def test_batch_that_cannot_be_shared_out(tmp_path):
    arguments = ["-m", "sparsify", "train", "--out", str(tmp_path / "run"), *changed("training.batch_size=65")]
    done = subprocess.run(command(2, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    assert "training.batch_size = 65 is the batch of all processes together" in done.stderr


def test_everything_at_once_in_two_processes(tmp_path):
    """Accumulation, float16 with a scale that overflows on purpose, clipping, fused AdamW, averaged weights."""
    table = load_recipe(None, CHANGES).model_dump(exclude_none=True)
    table["training"] |= {"accumulate": 4, "precision": "float16", "loss_scale": 2.0**40, "clip_norm": 0.5, "ema": 0.9}
    table["training"]["evaluate_every"] = 64 / 1438  # a line of metrics at every step
    table["optimizer"] = {"name": "adamw", "fused": True, "lr": 0.03, "weight_decay": 0.1}
    (tmp_path / "all.toml").write_text(parse_recipe(table).to_toml())
    arguments = ["-m", "sparsify", "train", str(tmp_path / "all.toml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command(2, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    content = read_checkpoint(tmp_path / "run/checkpoint.pt")
    for name, mask in content["masks"].items():
        assert not content["model"][name][~mask].any()
        assert not content["progress"]["average"][name][~mask].any()
    shapes = {tuple(mask.shape): mask for mask in content["masks"].values()}
    for state in content["optimizer"]["state"].values():
        for slot in state.values():
            if tuple(slot.shape) in shapes:
                assert not slot[~shapes[tuple(slot.shape)]].any()
    lines = {line["step"]: line for line in read_metrics(tmp_path / "run")}
    first = min(step for step, line in lines.items() if line["updates"] == 1)
    assert first > DELTA_T and first % DELTA_T, "the first update was due while gradients overflowed"
    after = sum(step % DELTA_T == 0 for step in range(first, round(0.9 * STEPS) + 1))
    assert lines[STEPS]["updates"] == 1 + after
    assert lines[STEPS]["loss"] < lines[1]["loss"] / 2
