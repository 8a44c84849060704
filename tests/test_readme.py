"""README's examples run as they stand there, in one empty folder, in the order in which they are read."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def commands(kind: str, text: str) -> list[list[str]]:
    if kind == "python":
        return [[sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", text]]
    lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    assert lines, f"a console block without a command: {text!r}"
    return [[sys.executable, "-m", *shlex.split(line)] for line in lines]


@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=range(len(BLOCKS)))
def test_example(kind, text, folder):
    for package in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE) if kind == "python" else ():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if file := re.match(r"# (\w+\.py)\n", text):
        (folder / file[1]).write_text(text)
    for command in commands(kind, text):
        done = subprocess.run(command, cwd=folder, env={**os.environ}, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_there_are_examples():
    assert len(BLOCKS) >= 5
    assert {kind for kind, _ in BLOCKS} == {"console", "python"}
