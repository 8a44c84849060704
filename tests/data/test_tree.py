"""Image trees: decoded ahead, the same again for the same seed and step, and not stopped by a broken file."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.data import data_info, load_data
from sparsify.data._tree import _central_box, _random_box
from sparsify.errors import DataError, RecipeError
from sparsify.recipe import load_recipe
from sparsify.training.loop import train

COLOURS = {"n01": (250, 10, 10), "n02": (10, 250, 10), "n03": (10, 10, 250)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes of eight plain-coloured images of odd sizes for training, and two each for testing."""
    for split, count in (("train", 8), ("val", 2)):
        for label, colour in COLOURS.items():
            folder = tmp_path / "imagenet" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (60 + 7 * index, 50 + 3 * index), colour).save(folder / f"{index}.JPEG", quality=95)
    return tmp_path


def colours(inputs: torch.Tensor) -> list[int]:
    """Class of each image by its strongest channel."""
    info = data_info("imagenet", {})
    pixels = inputs.mean((2, 3)) * torch.tensor(info.std) + torch.tensor(info.mean)
    return pixels.argmax(1).tolist()


def test_images_carry_their_labels(tree):
    data = load_data("imagenet", {}, tree)
    assert len(data.train) == 24 and len(data.test) == 6
    inputs, labels = data.train_batch(1, 24, seed=0)
    assert inputs.shape == (24, 3, 224, 224) and inputs.dtype == torch.float32
    assert colours(inputs) == labels.tolist() and sorted(labels.tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    batches = list(data.test_batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert [c for inputs, _ in batches for c in colours(inputs)] == [0, 0, 1, 1, 2, 2]


def test_a_batch_depends_on_seed_and_step_alone(tree):
    first, again = load_data("imagenet", {}, tree), load_data("imagenet", {}, tree)
    for step in (1, 2, 3):
        first.train_batch(step, 5, seed=7)
    inputs, labels = first.train_batch(4, 5, seed=7)
    same, same_labels = again.train_batch(4, 5, seed=7)
    assert torch.equal(inputs, same) and torch.equal(labels, same_labels)


def test_a_rank_decodes_its_share_of_a_batch_and_no_more(tree):
    data = load_data("imagenet", {}, tree)
    whole, _ = data.train_batch(2, 6, seed=7)
    ranks = [load_data("imagenet", {}, tree) for _ in range(3)]
    parts = [data.train_batch(2, 6, seed=7, share=(rank, 3))[0] for rank, data in enumerate(ranks)]
    assert torch.equal(torch.cat(parts), whole)
    assert {len(batch) for data in ranks for batch in data.ahead.values()} == {2}


def test_classes_are_told_by_their_names(tree):
    """A class without test images does not shift the others."""
    shutil.rmtree(tree / "imagenet/val/n01")
    data = load_data("imagenet", {}, tree)
    ((inputs, labels),) = data.test_batches(4)
    assert colours(inputs) == labels.tolist() == [1, 1, 2, 2]
    (tree / "imagenet/val/n02").rename(tree / "imagenet/val/other")
    with pytest.raises(DataError, match="holds classes that .*train does not: other"):
        load_data("imagenet", {}, tree)


def test_any_folder_of_images(tree):
    options = {"path": "imagenet", "classes": 3, "samples": 24, "size": 32}
    data = load_data("image_folder", options, tree)
    assert data_info("image_folder", options) == data.info
    inputs, labels = data.train_batch(1, 24, seed=0)
    assert inputs.shape == (24, 3, 32, 32) and colours(inputs) == labels.tolist()
    with pytest.raises(DataError, match=r"24 images in 3 classes, .* Set data.samples=24 and data.classes=3"):
        load_data("image_folder", {**options, "samples": 25}, tree)
    with pytest.raises(RecipeError, match=r"samples = 0 .* must be at least 1"):
        data_info("image_folder", {**options, "samples": 0})


def test_memory_holds_a_few_batches_ahead_and_no_more(tree):
    data = load_data("imagenet", {}, tree)
    for step in range(1, 12):
        data.train_batch(step, 3, seed=0)
        assert len(data.ahead) == 3 and min(data.ahead)[0] == step + 1


def test_a_broken_file_is_reported_counted_and_not_fatal(tree, caplog):
    broken = tree / "imagenet/train/n02/3.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    data = load_data("imagenet", {}, tree)
    with caplog.at_level(logging.WARNING, "sparsify"):
        inputs, labels = data.train_batch(1, 24, seed=0)
        data.train_batch(2, 24, seed=0)
    assert colours(inputs) == labels.tolist()
    assert data.train.damaged == {11}
    assert [record.getMessage() for record in caplog.records if "3.JPEG cannot be read" in record.getMessage()]
    assert len(caplog.records) == 1


def test_a_tree_of_broken_files_stops_with_a_message(tree):
    for path in (tree / "imagenet/train").rglob("*.JPEG"):
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match="20 images in a row cannot be read"):
        load_data("imagenet", {}, tree).train_batch(1, 4, seed=0)


def test_a_missing_tree_says_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match=r"imagenet/train holds 0 images .* one folder of JPEGs for each class"):
        load_data("imagenet", {}, tmp_path)


def test_random_crops_lie_within_the_image_and_cover_the_published_areas():
    draws = np.random.default_rng(0).random((2000, 5)).tolist()
    boxes = np.array([_random_box((300, 200), draw) for draw in draws])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 300).all() and (bottom <= 200).all()
    areas = (right - left) * (bottom - top) / (300 * 200)
    assert 0.07 < areas.min() < 0.1 and areas.max() > 0.9
    ratios = (right - left) / (bottom - top)
    inside = areas < 0.4  # larger ones are cut to the image
    assert 0.74 < ratios[inside].min() < 0.8 and 1.25 < ratios[inside].max() < 1.34


def test_the_central_crop_is_the_usual_one():
    left, top, right, bottom = _central_box((512, 256), (224, 224))
    assert right - left == bottom - top == pytest.approx(224 / 1.14 * 256 / 224, abs=0.5)
    assert (left + right) / 2 == 256 and (top + bottom) / 2 == 128


def test_training_on_a_tree(tree, tmp_path):
    changes = ["training.steps=4", "training.batch_size=6", "topology.delta_t=2", "model.width_multiplier=0.125"]
    changes += ["training.accumulate=2", "training.precision=float32"]
    run = train(load_recipe("mobilenet-v1-imagenet", changes), tmp_path / "run", data=tree)
    assert run.line["updates"] >= 1 and 0 <= run.line["test_accuracy"] <= 1
