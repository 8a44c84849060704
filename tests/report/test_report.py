"""What a person is shown: numbers that are right, and a table that fits a terminal."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from sparsify.errors import SparsifyError
from sparsify.recipe import load_recipe, recipe_names
from sparsify.report.inspection import inspect
from sparsify.report.plots import plot_inspection
from sparsify.report.tables import bar, human_count, inspection_table
from sparsify.sources import export


def shown(table: object, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def test_inspection_of_a_recipe_before_any_training():
    found = inspect("wrn-22-2-cifar10")
    assert found.weights == 1_076_912 and found.sparsity == pytest.approx(0.9, abs=1e-4)
    assert found.flops / found.dense_flops == pytest.approx(0.175, abs=5e-4)
    assert found.facts["origin"] == "initialised" and found.facts["training_steps"] == 97_656
    assert sum(layer.nonzeros for layer in found.layers) == found.nonzeros
    assert sum(layer.flops for layer in found.layers) == found.flops
    assert sum(layer.bytes for layer in found.layers) == found.bytes
    for layer in found.layers:
        assert layer.density == pytest.approx(layer.densities["erdos_renyi_kernel"], abs=1e-9)


def test_run_and_files_show_the_same(finished_run, tmp_path):
    for name in ("model.onnx", "model.safetensors"):
        export(finished_run, out=tmp_path / name)
    of_run, *of_files = [inspect(s) for s in (finished_run, tmp_path / "model.onnx", tmp_path / "model.safetensors")]
    for found in of_files:
        changes = {"source": found.source, "metrics": found.metrics}
        assert dataclasses.replace(of_run, **changes) == found
    assert of_run.metrics[-1]["step"] == 60


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_inspected(name):
    recipe, found = load_recipe(name), inspect(name, ["model.width_multiplier=0.25"])
    assert found.facts["data"] == recipe.data.name and found.plan.ratio < 1
    assert found.sparsity == pytest.approx(recipe.topology.sparsity, abs=0.01)
    assert "Training by rigl" in shown(inspection_table(found))


def test_settings_of_a_recipe_can_be_tried():
    assert inspect("lenet-300-100-digits", ["topology.sparsity=0.5"]).sparsity == pytest.approx(0.5, abs=1e-3)
    assert inspect("lenet-300-100-digits", ["topology.method=dense"]).sparsity == 0


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_names_every_layer(width):
    text = shown(inspection_table(inspect("wrn-22-2-cifar10"), width), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("128x128x3x3" in line and " 6.4%" in line for line in lines) == 5
    assert ("bytes" in text) == (width > 80)
    assert "…" not in text
    assert "0.175x" in text


@pytest.mark.parametrize(("share", "drawn"), [(0, ""), (1, "██████"), (0.5, "███"), (1 / 48, "▏"), (2, "██████")])
def test_bars_are_drawn_to_an_eighth(share, drawn):
    assert bar(share) == drawn.ljust(6)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (12_345, "12.3k"), (5_678_901, "5.68M"), (102_121_888, "102M")],
)
def test_counts_have_three_digits(count, text):
    assert human_count(count) == text


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_plots_are_files_of_their_kind_and_the_same_again(tmp_path, suffix):
    found = inspect("lenet-300-100-digits")
    for name in ("one", "two"):
        plot_inspection(found, tmp_path / f"{name}{suffix}")
    content = (tmp_path / f"one{suffix}").read_bytes()
    assert content == (tmp_path / f"two{suffix}").read_bytes()
    assert content.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        assert content.count(b"</svg>") == 1


def test_a_plot_of_an_unknown_kind(tmp_path):
    with pytest.raises(SparsifyError, match=r"must end in one of .svg, .png, .pdf"):
        plot_inspection(inspect("lenet-300-100-digits"), tmp_path / "plot.jpg2000")
