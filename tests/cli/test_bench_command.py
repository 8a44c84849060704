"""`sparsify bench` with its files and its comparison, each time in a process of its own."""

from __future__ import annotations

import json

import pytest


def test_one_run_gives_all_files_and_two_reports_are_compared(sparsify, tmp_path):
    timing = ("--rounds", "2", "--launches", "1", "--seconds", "0.001", "--threads", "1", "--runtime", "onnxruntime")
    files = ("--csv", "r.csv", "--html", "r.html")
    done = sparsify(
        "bench", "lenet-300-100-digits", "--sparsity", "0.5,0.9", "--batch", "1,2", *timing, *files, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["rows"]) == 4
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 1 + 2 * 4
    assert "Layers in onnxruntime" in (tmp_path / "r.html").read_text()
    (tmp_path / "r.json").write_text(done.stdout)
    compared = sparsify("bench", "--compare", "r.json", "r.json")
    assert compared.returncode == 0 and compared.stdout.count("too few") == 8, compared.stderr
    changes = json.loads(sparsify("bench", "--compare", "r.json", "r.json", "--json").stdout)["changes"]
    assert [change["ratio"]["median"] for change in changes] == [1.0] * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "one.json"], "--compare takes two reports, the old one first, and was given 1."),
        (["--compare", "one.json", "two.json"], "one.json cannot be read (No such file or directory)"),
        (["lenet-300-100-digits", "--batch", "1;2"], "--batch 1;2 is not a list of numbers, such as 1,16."),
        (["lenet-300-100-digits", "--sparsity", "half"], "--sparsity half is not a list of numbers, such as 0,0.5"),
        (["lenet-300-100-digits", "--sparsity", "0.5,1"], "'topology.sparsity' = 1.0 is not possible"),
        (["lenet-300-100-digits", "--threads", "0"], "must be at least 1"),
    ],
)
def test_bad_questions_are_one_message(sparsify, arguments, message):
    done = sparsify("bench", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
