"""The wheel holds all that a user needs: recipes, the data that ships, type marker, licence."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from sparsify.recipe import recipe_names

ROOT = Path(__file__).parent.parent


def test_the_wheel_is_complete(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("sparsify_rigl-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sparsify/models/{name}.toml" for name in recipe_names()} <= set(names)
    assert "sparsify/report/bench_page.css" in names
    assert {"sparsify/py.typed", "sparsify/data/optical_digits/images-idx3-ubyte.gz"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if not name.startswith("sparsify_rigl-")} == {"sparsify"}


def test_recipes_are_found_in_an_installed_package(tmp_path):
    """The wheel alone on the path, from a folder that has no models/ beside it."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import sparsify.recipe as r; print(r.folder()); print(r.load_recipe().name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [str(tmp_path / "site/sparsify/models"), "lenet-300-100-digits"], done.stderr
