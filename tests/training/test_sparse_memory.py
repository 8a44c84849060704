"""Nothing of the dense weights' size is ever made: drawn, trained, grown, saved and loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.data import data_info
from sparsify.errors import InterruptedTraining
from sparsify.formats import Written, _bits, _packed, _positions, _writer, load_format, read_model
from sparsify.nn import SparseConv2d, SparseLayer, SparseLinear, conv_products, growth, sparse_layers
from sparsify.recipe import load_recipe
from sparsify.report.inspection import Inspection, inspect
from sparsify.sources import export
from sparsify.topology import select
from sparsify.topology.costs import Layer
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.topology.select import random_positions
from sparsify.training import deferred
from sparsify.training.checkpoint import Window, load_checkpoint, read_checkpoint, save_checkpoint
from sparsify.training.compute import positions_of
from sparsify.training.loop import training
from sparsify.training.slots import slots
from sparsify.training.snapshot import load_method, snapshot
from sparsify.training.step import Topology, TrainState, finish_step, record_gradients
from tests.allocations import Watcher

SIZE, COUNT, BATCH = 1024, 1600, 8


def linear(random: torch.Generator) -> SparseLayer:
    return SparseLinear(SIZE, SIZE, random_positions(SIZE * SIZE, COUNT, random))


def convolution(random: torch.Generator) -> SparseLayer:
    """4 x 4 taps, and one position of the output."""
    positions = random_positions(SIZE * SIZE, COUNT, random)
    return SparseConv2d(SIZE // 4, SIZE // 4, 4, positions, padding=2, stride=4)


def life(method: str, folder: Path, layer: Callable[[torch.Generator], SparseLayer] = linear) -> TrainState:
    """Eight steps with two updates, a checkpoint and its reading."""
    random = torch.Generator().manual_seed(0)
    layers = [layer(random) for _ in range(2)]
    shape = (BATCH, SIZE) if layer is linear else (BATCH, SIZE // 4, 2, 2)
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = TrainState(model, optimizer, Masks({}, positions=positions_of(model)))
    topology = Topology(load_method(method), UpdateSchedule(delta_t=3, alpha=0.5, t_end=6), seed=0)
    for _ in range(8):
        record_gradients(state, topology)
        model(torch.randn(shape, generator=random)).square().mean().backward()
        state = finish_step(state, topology, clip_norm=1.0)
    save_checkpoint(folder / "checkpoint.pt", state, Window(torch.zeros(())), 0)
    return load_checkpoint(folder / "checkpoint.pt", read_checkpoint(folder / "checkpoint.pt"), state)[0]


@pytest.mark.parametrize("layer", [linear, convolution])
@pytest.mark.parametrize("method", ["rigl", "set", "static"])
def test_largest_tensor_and_peak_of_arrays(method, layer, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "BLOCK", 8 * SIZE)
    monkeypatch.setattr(select, "_PERMUTED", 0)
    monkeypatch.setattr(conv_products, "_SUMS", 16 * SIZE * 4)
    life(method, tmp_path, layer)  # what is imported or compiled once is there now
    tracemalloc.start()
    try:
        with Watcher() as watcher:
            state = life(method, tmp_path, layer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (state.updates == 2) == (method != "static") and sum(state.masks.nonzeros().values()) == 2 * COUNT
    assert COUNT <= watcher.largest <= 16 * SIZE + COUNT, "more than a block of the dense gradient"
    assert peak < SIZE * SIZE, f"{peak} bytes of arrays, and a mask would have {SIZE * SIZE}"


def held(state: TrainState) -> int:
    """Bytes of what training keeps from step to step and is not as long as a layer's neurons."""
    tensors = [held.flat for held in state.masks.positions.values()] + list(state.explored.found.values())
    arrays = []
    for layer in sparse_layers(state.model).values():
        weight = layer.weight
        tensors += [weight, torch.empty_like(weight), *slots(state.optimizer, weight)]  # a gradient, in a step
        arrays += [value for value in vars(layer.pattern).values() if isinstance(value, np.ndarray)]
    return sum(tensor.nbytes for tensor in tensors) + sum(array.nbytes for array in arrays)


def test_what_is_kept_goes_with_the_connections(tmp_path, monkeypatch):
    """A straight line: Adam keeps four floats for each, and there are indices and positions."""
    monkeypatch.setattr(select, "_PERMUTED", 0)
    counts = [4000, 8000, 12000]  # of 1,048,576 in each of two layers: what was explored is a list in all
    found = []
    for count in counts:
        monkeypatch.setattr(sys.modules[__name__], "COUNT", count)
        found.append(held(life("rigl", tmp_path)))
    steps = [b - a for a, b in pairwise(found)]
    assert steps[1] == pytest.approx(steps[0], rel=0.05)
    assert 2 * 4 * (4 + 1 + 2 + 2) <= steps[0] / 4000 <= 2 * 60, "of two layers, more than 60 bytes for each connection"
    assert found[0] - steps[0] < SIZE * SIZE / 8, "less than a bit for each weight is left without any connection"


def test_a_model_is_written_in_parts(tmp_path, monkeypatch):
    """No array of a weight's size is made to write it and to prove what was written."""
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(SparseLinear(SIZE, SIZE, random_positions(SIZE * SIZE, COUNT, random)))
    model[0].weight.data[:5] = 0  # connections all the same
    masks = Masks({}, positions=positions_of(model))
    recipe = load_recipe(None, [])
    layers = [Layer("0.weight", (SIZE, SIZE), 1)]
    for module in (_bits, _packed):
        monkeypatch.setattr(module, "CHUNK", 1 << 14)
    monkeypatch.setattr(_writer, "MEMORY", 1 << 14)

    def write() -> Written:
        final = snapshot(model, layers, masks, recipe, data_info("digits", {}), "trained")
        written: Written = load_format("safetensors").write(final, tmp_path / "model.safetensors")
        return written

    write()  # what is imported once is there now
    tracemalloc.start()
    try:
        written = write()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.digest == masks.digest() and written.size > SIZE * SIZE * 4
    assert peak < SIZE * SIZE, f"{peak} bytes, and the weight has {SIZE * SIZE * 4}"
    read = read_model(tmp_path / "model.safetensors")
    assert np.array_equal(read.tensors["0.weight"], model[0].to_dense().numpy())
    assert read.digest() == masks.digest()


def test_a_packed_model_is_written_counted_and_exported_in_parts(tmp_path, monkeypatch):
    """From values and positions to the file, and from one file to the next."""
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(SparseLinear(SIZE, SIZE, random_positions(SIZE * SIZE, COUNT, random)))
    model[0].weight.data[:5] = 0  # connections all the same
    masks = Masks({}, positions=positions_of(model))
    layers = [Layer("0.weight", (SIZE, SIZE), 1)]
    for module, name in ((_positions, "PART"), (_positions, "BLOCK"), (_writer, "SHIFT")):
        monkeypatch.setattr(module, name, 1 << 14)
    path, again = tmp_path / "model.sparse.safetensors", tmp_path / "again.sparse.safetensors"

    def write() -> tuple[Written, int, str]:
        final = snapshot(model, layers, masks, load_recipe(None, []), data_info("digits", {}), "trained")
        written = load_format("safetensors").write(final, path, packed=True)
        found = inspect(path)
        export(path, out=again, packed=True, force=True)
        return written, found.nonzeros, found.mask_digest

    write()  # what is imported once is there now
    tracemalloc.start()
    try:
        written, nonzeros, digest = write()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.digest == digest == masks.digest() and nonzeros == COUNT
    assert written.size < SIZE * SIZE / 8 and again.read_bytes() == path.read_bytes()
    assert peak < SIZE * SIZE, f"{peak} bytes, and the weight has {SIZE * SIZE * 4}"
    assert np.array_equal(read_model(path).tensors["0.weight"], model[0].to_dense().numpy())


def test_an_unfinished_run_is_inspected_and_exported_in_parts(tmp_path, monkeypatch):
    """From the checkpoint to the packed file."""
    wide = 3 * SIZE // 2
    changes = [f"model.hidden=[{wide}, {wide}]", "topology.sparsity=0.995", "topology.delta_t=2"]
    recipe = load_recipe(None, [*changes, "topology.layers={'*5.weight' = 'dense'}", "training.steps=9"])
    monkeypatch.setattr(deferred, "LARGE", 1 << 14)
    for module, name in ((_positions, "PART"), (_positions, "BLOCK"), (_writer, "SHIFT"), (deferred, "_PART")):
        monkeypatch.setattr(module, name, 1 << 14)
    monkeypatch.setattr(select, "_PERMUTED", 0)
    with pytest.raises(InterruptedTraining):
        for progress in training(recipe, tmp_path / "run", compute="sparse"):
            if progress.step == 4:
                signal.raise_signal(signal.SIGTERM)

    def write() -> Inspection:
        found = inspect(tmp_path / "run")
        written = export(tmp_path / "run", out=tmp_path / "run.sparse.safetensors", packed=True, force=True)
        assert written.digest == found.mask_digest == inspect(tmp_path / "run.sparse.safetensors").mask_digest
        return found

    write()  # what is imported once is there now
    tracemalloc.start()
    try:
        with Watcher() as watcher:
            found = write()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.facts["origin"] == "in training" and found.nonzeros < wide * wide / 16
    assert watcher.largest < wide * wide / 8
    assert peak < wide * wide, f"{peak} bytes, and the weight has {wide * wide * 4}"


def test_the_experiment_runs_and_leaves_nothing_behind_for_each_weight():
    """What is held beside blocks that come and go must not keep their places: the peak of the process tells."""
    script = Path(__file__).parents[2] / "experiments/sparse_memory.py"
    command = [sys.executable, str(script), "--width", "8192", "--sparsity", "0.9995", "--steps", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("connections grown") == 2
    peaks = [float(line.split("peak ")[1].split()[0]) for line in done.stdout.splitlines()[1:]]
    assert len(peaks) == 6 and peaks[-1] - peaks[0] < 0.5 * 3 * 8192**2 / 1e9, "GB; half a byte for each weight"
