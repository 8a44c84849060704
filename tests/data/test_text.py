"""Text as bytes: stretches and what follows them, the same again for the same seed and step."""

from __future__ import annotations

import os

import pytest
import torch

from sparsify.data import data_info, load_data
from sparsify.data._numbered import NumberedData
from sparsify.data._text import Sequences, open_text, text_info
from sparsify.data.wikitext103 import SIZES
from sparsify.errors import DataError, RecipeError


def opened(tmp_path, content: bytes, length: int) -> NumberedData:
    (tmp_path / "text").write_bytes(content)
    text = open_text(tmp_path / "text", len(content))
    return NumberedData(text_info(len(content), length), Sequences(text, length), Sequences(text, length))


def test_every_byte_is_followed_by_the_next(tmp_path):
    data = opened(tmp_path, bytes(range(250)), 7)
    inputs, following = data.train_batch(1, 20, seed=0)
    assert inputs.dtype == following.dtype == torch.int64 and inputs.shape == following.shape == (20, 7)
    assert torch.equal(following, inputs + 1)


def test_an_epoch_shows_each_stretch_once(tmp_path):
    data = opened(tmp_path, bytes(range(250)), 7)  # 35 stretches and the byte behind the last; four bytes are left
    assert len(data.train) == data.info.train_samples == 35
    starts = [start for step in range(1, 8) for start in data.train_batch(step, 5, seed=3)[0][:, 0].tolist()]
    assert sorted(starts) == list(range(0, 245, 7))
    assert starts != sorted(starts)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
    data = opened(tmp_path, bytes(range(250)), 7)
    first = data.train_batch(4, 6, seed=1)
    data.train_batch(5, 6, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, data.train_batch(4, 6, seed=1), strict=True))
    assert not torch.equal(first[0], data.train_batch(4, 6, seed=2)[0])


def test_the_test_text_comes_from_start_to_end(tmp_path):
    data = opened(tmp_path, bytes(range(250)), 7)
    batches = list(data.test_batches(16))
    assert [len(inputs) for inputs, _ in batches] == [16, 16, 3]
    assert torch.cat([inputs.flatten() for inputs, _ in batches]).tolist() == list(range(245))


def test_a_text_of_another_size_is_said(tmp_path):
    (tmp_path / "enwik8").mkdir()
    (tmp_path / "enwik8/enwik8").write_bytes(b"too short")
    with pytest.raises(DataError, match="should hold 100,000,000 bytes and holds 9"):
        load_data("enwik8", {}, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length = 0 must be at least 1"),
        ({"length": 500, "test_bytes": 500}, "test_bytes = 500 must be more than length"),
        ({"lenght": 5}, "no key in \\[data\\] called 'lenght'. Did you mean 'length'"),
    ],
)
def test_impossible_options_are_said(options, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        load_data("enwik8", options, tmp_path)


def test_any_file_as_text(tmp_path):
    (tmp_path / "book.txt").write_bytes(bytes(range(256)) * 4)
    options = {"path": "book.txt", "size": 1024, "test_bytes": 256, "length": 10}
    data = load_data("text", options, tmp_path)
    assert data_info("text", options) == data.info and data.info.train_samples == len(data.train) == 76
    assert data.test.text.tolist() == list(range(256))
    with pytest.raises(RecipeError, match="test_bytes = 10 must be more than length = 10"):
        data_info("text", {**options, "test_bytes": 10})
    with pytest.raises(DataError, match="should hold 2,048 bytes and holds 1,024"):
        load_data("text", {**options, "size": 2048}, tmp_path)


def test_wikitext103_is_found_as_its_archive_unpacks(tmp_path):
    folder = tmp_path / "wikitext-103-raw"
    folder.mkdir()
    for name, size in SIZES.items():  # files without content take no room on disk
        (folder / name).touch()
        os.truncate(folder / name, size)
    data = load_data("wikitext103", {"length": 64}, tmp_path)
    assert data.info == data_info("wikitext103", {"length": 64})
    assert len(data.train) == data.info.train_samples and data.train_batch(9, 5, seed=0)[0].shape == (5, 64)
    assert len(data.test.text) == 1_290_590
    os.truncate(folder / "wiki.test.raw", 1000)
    with pytest.raises(DataError, match="wiki.test.raw should hold 1,290,590 bytes and holds 1,000"):
        load_data("wikitext103", {}, tmp_path)


def test_enwik8_is_split_as_usual(real_data):
    data = load_data("enwik8", {"length": 512}, real_data("enwik8"))
    assert bytes(data.train.text[:10].tolist()) == b"<mediawiki"
    assert len(data.train.text) == 90_000_000 and len(data.test.text) == 5_000_000
