"""Peak memory of training against the density of the layers: a straight line through little more than nothing.

Each density is trained in a process of its own: three layers, SGD with momentum, some steps and then an update. What
the process took before it built the network does not count. Dense layers in torch stand beside.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _experiment import RESULTS, write_report
from sparse_memory import BATCH, LAYERS, build
from torch import nn

from sparsify.files import write_json
from sparsify.methods.rigl import RigL
from sparsify.report.plots import figure_in
from sparsify.topology.masks import Masks
from sparsify.topology.schedules import UpdateSchedule
from sparsify.training.compute import positions_of
from sparsify.training.step import Topology, TrainState, finish_step, record_gradients

WIDTH, STEPS = 8192, 3
DENSITIES = (0.0025, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1)
MEASURES = {"step": "a step", "update": "a step that updates the masks"}


def main() -> None:
    """Train what is missing, in processes of their own; write results, picture and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--densities", type=lambda text: [float(d) for d in text.split(",")], default=DENSITIES)
    parser.add_argument("--measure", type=float, help=argparse.SUPPRESS)  # of this density, in this process
    given = parser.parse_args()
    if given.measure is not None:
        return print(json.dumps(measure(given.width, given.measure)))
    points = []
    for density in (*given.densities, 1.0):
        command = [sys.executable, __file__, "--width", str(given.width), "--measure", str(density)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        points.append({"density": density, **json.loads(done.stdout)})
        print(f"memory_by_density: {density:.2%}, {points[-1]}", flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    found = {"width": given.width, "points": points}
    picture(found, given.results / "memory_by_density.svg")
    write_json(given.results / "memory_by_density.json", found)
    write_report(given.results)


def measure(width: int, density: float) -> dict[str, int]:
    """Bytes that training takes at most, until the first update and with it; dense layers at density 1."""
    x, labels = torch.randn(BATCH, width), torch.randint(0, 10, (BATCH,))
    train(build(256, 0.9), torch.randn(BATCH, 256), labels)  # what is compiled or imported once is there now
    gc.collect()
    before = _peak()
    if density < 1:
        return {name: peak - before for name, peak in train(build(width, 1 - density), x, labels).items()}
    dense = nn.Sequential(*(part for _ in range(LAYERS) for part in (nn.Linear(width, width), nn.ReLU())))
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.001, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(dense(x), labels).backward()
        optimizer.step()
    return {"step": _peak() - before}


def train(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> dict[str, int]:
    """Peaks of this process after some steps, and after one more with an update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    state = TrainState(model, optimizer, Masks({}, positions=positions_of(model)))
    topology = Topology(RigL(), UpdateSchedule(delta_t=STEPS + 1, alpha=0.3, t_end=STEPS + 1), seed=0)
    peaks = {}
    for step in range(1, STEPS + 2):
        record_gradients(state, topology)
        nn.functional.cross_entropy(model(x), labels).backward()
        state = finish_step(state, topology)
        peaks["step" if step <= STEPS else "update"] = _peak()
    assert state.updates == 1
    return peaks


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def lines(found: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Of each measure bytes for a connection, bytes without any, and the largest distance from that line in bytes."""
    sparse = [point for point in found["points"] if point["density"] < 1]
    counts = np.array([point["density"] * LAYERS * found["width"] ** 2 for point in sparse])
    result = {}
    for name in MEASURES:
        peaks = np.array([point[name] for point in sparse], np.float64)
        slope, base = np.polyfit(counts, peaks, 1)
        result[name] = float(slope), float(base), float(np.abs(peaks - slope * counts - base).max())
    return result


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Peaks over density, with the line through them."""
    sparse = [point for point in found["points"] if point["density"] < 1]
    densities = np.array([point["density"] for point in sparse])
    with figure_in(path, figsize=(6, 3.6)) as (figure, axes):
        for (name, label), colour in zip(MEASURES.items(), ("#4c78a8", "#f58518"), strict=True):
            slope, base, _ = lines(found)[name]
            axes.scatter(100 * densities, [point[name] / 1e9 for point in sparse], color=colour, label=label)
            axes.plot(100 * densities, (slope * densities * LAYERS * found["width"] ** 2 + base) / 1e9, color=colour)
        axes.set_xlabel("density, %")
        axes.set_ylabel("peak memory, GB")
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def report(found: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    claim = "Claim: training takes memory in proportion to the connections, and nothing of the dense weights' size."
    text = ["## Memory by density", "", claim, ""]
    if not found:
        return "\n".join([*text, "*not run*: `python experiments/memory_by_density.py`"])
    text += ["![peak memory over density](experiments/results/memory_by_density.svg)", ""]
    text += [f"| density | {MEASURES['step']}, MB | {MEASURES['update']}, MB |", "|---|---|---|"]
    for point in found["points"]:
        cells = [f"{point[name] / 1e6:,.0f}" if name in point else "" for name in MEASURES]
        label = f"{100 * point['density']:g} %" if point["density"] < 1 else "dense, torch"
        text.append(f"| {label} | " + " | ".join(cells) + " |")
    text += ["", f"{LAYERS} layers of {found['width']:,} x {found['width']:,}, batch {BATCH}, SGD with momentum. "
             "`python experiments/memory_by_density.py`", ""]  # fmt: skip
    for name, (slope, base, off) in lines(found).items():
        text.append(
            f"- At the peak of {MEASURES[name]}: {slope:.0f} bytes for each connection and {base / 1e6:,.0f} MB "
            f"besides; no point is more than {off / 1e6:,.0f} MB from that line."
        )
    return "\n".join(text)


if __name__ == "__main__":
    main()
