"""How fast and in how much memory checkpoints are converted, and how large files become. Prints one JSON object.

python tests/benchmarks/conversion.py --gigabytes 8      # a synthetic sharded checkpoint, 90 % zeros
python tests/benchmarks/conversion.py --sizes            # a ResNet-50 at 80, 90, 95 and 99 %
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import sparsify

EXTENT = 4096  # of square weights: 64 MiB each in float32
SHARD = 16  # weights a shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where there is room for twice as much [default: the temporary one]"
    )
    parser.add_argument("--sizes", action="store_true", help="sizes of a ResNet-50's files instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = sizes(Path(folder)) if given.sizes else conversion(Path(folder), given.gigabytes)
    print(json.dumps(found, indent=2))


def conversion(folder: Path, gigabytes: float) -> dict[str, object]:
    """Seconds and GB/s of a plain copy and of both conversions, one after the other; peak memory of each in MB."""
    source = folder / "checkpoint"
    count = max(1, round(gigabytes * 1e9 / (4 * EXTENT**2)))
    # In a process of its own: Linux lets a child inherit its parent's peak of memory.
    maker = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(source, count))
    maker.start()
    maker.join()
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    export = [sys.executable, "-m", "sparsify", "export", str(source), "--format", "safetensors", "--force"]
    jobs = {
        "copy": [sys.executable, "-c", COPY, str(source), str(folder / "copy")],
        "dense": [*export, "--out", str(folder / "dense.safetensors")],
        "packed": [*export, "--packed", "--out", str(folder / "packed.sparse.safetensors")],
        "imports": [sys.executable, "-c", "import sparsify.sources"],
    }
    found: dict[str, object] = {"bytes": size, "largest_tensor_mb": 4 * EXTENT**2 / 1e6}
    for name, command in jobs.items():
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f"{name} failed"
        seconds = time.perf_counter() - start
        found[name] = {"seconds": seconds, "gb_per_s": size / 1e9 / seconds, "peak_mb": usage.ru_maxrss / 1e3}
        for written in folder.iterdir():
            if written != source:
                shutil.rmtree(written) if written.is_dir() else written.unlink()
    return found


# Read and written in pieces, as a copy has to be that ends on the disk: the kernel may otherwise share the blocks.
COPY = """
import os, sys
source, target = sys.argv[1:]
os.mkdir(target)
for name in os.listdir(source):
    with open(f"{source}/{name}", "rb") as read, open(f"{target}/{name}", "wb") as write:
        while piece := read.read(1 << 24):
            write.write(piece)
        write.flush()
        os.fsync(write.fileno())
"""


def make_checkpoint(folder: Path, count: int) -> None:
    """Shards of square float32 weights, nine of ten elements 0, and their index."""
    folder.mkdir()
    random = np.random.default_rng(0)
    places: dict[str, str] = {}
    for start in range(0, count, SHARD):
        weights = {}
        for i in range(start, min(count, start + SHARD)):
            weight = random.standard_normal((EXTENT, EXTENT), np.float32)
            weight[random.random((EXTENT, EXTENT), np.float32) < 0.9] = 0
            weights[f"layers.{i}.weight"] = weight
        name = f"model-{start // SHARD + 1:05}-of-{-(-count // SHARD):05}.safetensors"
        save_file(weights, folder / name, {"format": "pt"})
        places |= dict.fromkeys(weights, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def sizes(folder: Path) -> dict[str, object]:
    """MB of both packed forms by sparsity and type of values; safetensors also against the entropy bound."""
    found = {}
    for sparsity in (0.8, 0.9, 0.95, 0.99):
        changes = [f"topology.sparsity={sparsity}", "topology.distribution=uniform"]
        model = sparsify.export("resnet50-imagenet", out=folder / "m.onnx", changes=changes, force=True)
        run = sparsify.export("resnet50-imagenet", out=folder / "m.safetensors", changes=changes, force=True)
        inspected = sparsify.inspect(run.path)
        for values, width in (("float32", 4), ("float16", 2)):
            onnx = sparsify.export(model.path, out=folder / "p.onnx", encoding="packed", values=values, force=True)
            packed = sparsify.export(
                run.path, out=folder / "p.sparse.safetensors", packed=True, values=values, force=True
            )
            bound = sum(entropy_bytes(row.weights, row.nonzeros, width) for row in inspected.layers)
            small = [t for t in sparsify.open_source(run.path).tensors.values() if t.ndim < 2]
            others = sum(np.count_nonzero(t) * t.itemsize for t in small)  # an untrained network's biases are 0
            found[f"{sparsity:.0%} {values}"] = {
                "onnx_mb": onnx.size / 1e6,
                "safetensors_mb": packed.size / 1e6,
                "bound_mb": (bound + others) / 1e6,
                "over_bound": packed.size / (bound + others) - 1,
            }
    return found


def entropy_bytes(weights: int, nonzeros: int, width: int) -> float:
    """Values, and H(s) bits for each position."""
    density = nonzeros / weights
    entropy = sum(-p * math.log2(p) for p in (density, 1 - density) if p > 0)
    return nonzeros * width + weights * entropy / 8


if __name__ == "__main__":
    main()
