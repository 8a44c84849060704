"""Imports point one way, and the walls that pay for themselves stand."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sparsify

PACKAGE = Path(sparsify.__file__).parent
# Left to right; names in one group may import each other only where the order inside the group allows it.
LAYERS = [
    ["errors"], ["files", "onnx_scan", "registry", "randomness"], ["references"], ["recipe"], ["topology"], ["methods"],
    ["architectures", "data"],
    ["formats"], ["engine"], ["nn"], ["gpu"], ["training"], ["adapters"], ["sources"], ["hub"], ["interpolation"],
    ["runtimes"], ["bench"], ["report"], ["cli"],
]  # fmt: skip
RANK = {name: rank for rank, group in enumerate(LAYERS) for name in group}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(path: Path) -> set[str]:
    """Top-level parts of sparsify that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the direction"
            base = node.module or ""
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == "sparsify" else [base]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("sparsify.")}
    return found & set(RANK)


def test_every_part_has_its_layer():
    parts = {layer(path) for path in FILES} - {"__init__", "__main__"}
    assert parts <= set(RANK), f"give {parts - set(RANK)} a place in LAYERS and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = layer(path)
    if own in ("__init__", "__main__"):
        return
    backwards = {other for other in imported_layers(path) if other != own and RANK[other] >= RANK[own]}
    assert not backwards, f"{path} ({own}) imports {backwards}, which stand to its right"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_methods_see_only_topology(path):
    assert imported_layers(path) <= {"topology", "methods"}


@pytest.mark.parametrize("part", ["sparsify", "sparsify.engine", "sparsify.formats"])
def test_deployment_needs_no_torch(part):
    """Every module of the engine and of the formats imports where torch is not installed."""
    code = f"""
import sys, pkgutil, importlib
sys.modules["torch"] = None
package = importlib.import_module({part!r})
if {part!r} != "sparsify":
    for module in pkgutil.walk_packages(package.__path__, {part!r} + "."):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
