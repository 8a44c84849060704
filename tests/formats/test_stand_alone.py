"""Who deploys a sparse model installs no trainer: packed files are read where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys

from sparsify.sources import export, open_source

CODE = """
import sys
for name in ("torch", "onnxscript", "onnxruntime"):
    sys.modules[name] = None
from pathlib import Path
from sparsify.formats import read_model
for path in sys.argv[1:]:
    print(read_model(Path(path)).digest())
"""


def test_packed_files_are_read_without_torch(finished_run, tmp_path):
    paths = [
        export(finished_run, out=tmp_path / "m.sparse.safetensors", packed=True).path,
        export(finished_run, out=tmp_path / "m.onnx", encoding="packed", values="float16").path,
        export(finished_run, out=tmp_path / "b.onnx", encoding="sparse-tensor", values="bfloat16").path,
    ]
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {open_source(finished_run).digest()}
