"""Data sets: the one that ships, the real ones where they stand, batches, and damaged files."""

from __future__ import annotations

import gzip
import struct
from inspect import signature

import numpy as np
import pytest
import torch

from sparsify import registry
from sparsify.data import DataInfo, Dataset, data_folder, data_info, load_data, normalise, stream_rows
from sparsify.data._download import find_or_fetch
from sparsify.data._idx import read_idx
from sparsify.data.cifar10 import RECORD
from sparsify.errors import DataError, RecipeError

FOLDERS = {
    "mnist": "mnist",
    "fashion_mnist": "fashion-mnist",
    "cifar10": "cifar-10-batches-bin",
    "imagenet": "imagenet",
    "enwik8": "enwik8",
    "wikitext103": "wikitext-103-raw",
}


@pytest.mark.parametrize("name", registry.names("data"))
def test_every_data_set_is_known_without_its_files(name):
    try:
        info = data_info(name, {})
    except RecipeError as error:  # what it is only its options say
        assert "lacks the key 'data." in str(error)
        return
    assert isinstance(info, DataInfo)
    assert len(info.mean) == len(info.std) == (0 if info.vocabulary else info.input_shape[0])
    assert info.train_samples > 0 and info.classes > 1 and min(info.std, default=1) > 0
    assert info.zeros(2).shape == (2, *info.input_shape)


@pytest.mark.parametrize("name", registry.names("data"))
def test_real_files_are_what_is_known(name, request):
    if name in FOLDERS:
        request.getfixturevalue("real_data")(FOLDERS[name])
    parameters = list(signature(registry.load("data", name).load).parameters.values())[1:]
    if any(parameter.default is parameter.empty for parameter in parameters):
        pytest.skip("what it is only its options say; other tests here look at that")
    data = load_data(name, {})
    if not isinstance(data, Dataset):
        pytest.skip("it is read from files while training runs; other tests here look at that")
    assert tuple(data.train.pixels.shape) == (data.info.train_samples, *data.info.input_shape)
    assert data.train.pixels.dtype == torch.uint8
    assert sorted(data.train.labels.unique().tolist()) == list(range(data.info.classes))
    inputs, labels = next(data.test_batches(64))
    assert inputs.shape == (64, *data.info.input_shape) and labels.shape == (64,)
    if any(data.info.mean):  # centred ones have mean 0 and deviation 1
        pixels = normalise(data.train.pixels, data.info)
        assert pixels.mean().abs() < 0.01 and (pixels.std() - 1).abs() < 0.01


def test_an_epoch_shows_every_image_once_and_batches_span_epochs():
    data = load_data("digits", {})
    size, count = 100, len(data.train)
    seen = torch.cat([stream_rows(step, size, 3, count) for step in range(1, 2 * count // size + 2)])
    assert seen[:count].sort().values.tolist() == list(range(count))
    assert seen[count : 2 * count].sort().values.tolist() == list(range(count))
    assert not torch.equal(seen[:count], seen[count : 2 * count])


def test_a_batch_depends_on_seed_and_step_alone():
    data = load_data("digits", {})
    for _ in range(2):
        inputs, labels = data.train_batch(7, 32, seed=1)
        data.train_batch(8, 32, seed=1)
    again, again_labels = data.train_batch(7, 32, seed=1)
    assert torch.equal(inputs, again) and torch.equal(labels, again_labels)
    assert not torch.equal(inputs, data.train_batch(7, 32, seed=2)[0])


def test_crop_and_flip_move_pixels_and_nothing_else(real_data):
    data = load_data("cifar10", {}, real_data("cifar-10-batches-bin"))
    plain = load_data("cifar10", {"augment": False}, real_data("cifar-10-batches-bin"))
    moved, labels = data.train_batch(5, 64, seed=0)
    inputs, same_labels = plain.train_batch(5, 64, seed=0)
    assert torch.equal(labels, same_labels)
    padded = torch.nn.functional.pad(inputs, [4] * 4)
    parts = [data.train_batch(5, 64, seed=0, share=(rank, 4))[0] for rank in range(4)]
    assert torch.equal(torch.cat(parts), moved)
    flipped = 0
    for image, source in zip(moved, padded, strict=True):
        places = [(mirror, y, x) for mirror in (False, True) for y in range(9) for x in range(9)
                  if torch.equal((image.flip(2) if mirror else image), source[:, y : y + 32, x : x + 32])]  # fmt: skip
        assert places, "an augmented image is no crop of its source"
        flipped += places[0][0]
    assert 16 < flipped < 48


def test_options_are_checked():
    with pytest.raises(RecipeError, match=r"no key in \[data\] called 'augmnt'. Did you mean 'augment'"):
        load_data("cifar10", {"augmnt": True})


def idx(*shape: int, payload: bytes | None = None, magic: bytes = b"\0\0\x08") -> bytes:
    body = bytes(int(np.prod(shape))) if payload is None else payload
    return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + body


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "does not begin like an IDX file"),
        (b"\0\0\x08\x03\0\0", "ends inside its header"),
        (idx(2, 3, magic=b"\0\0\x0d"), "does not begin like an IDX file of bytes"),
        (idx(2, 3, payload=b"12345"), "promises 6 bytes of data and 5 are there"),
        (idx(2, 3, payload=b"1234567"), "promises 6 bytes of data and 7 are there"),
        (idx(2**31, 2**31, 2**31, payload=b""), "promises 9,903,520,314,283,042,199,192,993,792 bytes"),
    ],
)
def test_damaged_idx_files(tmp_path, content, found):
    (tmp_path / "plain").write_bytes(content)
    with pytest.raises(DataError, match=found):
        read_idx(tmp_path / "plain")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=found):
        read_idx(tmp_path / "packed.gz")


def test_idx_gzipped_or_not(tmp_path):
    (tmp_path / "a").write_bytes(idx(2, 2, payload=b"\1\2\3\4"))
    (tmp_path / "b.gz").write_bytes(gzip.compress(idx(2, 2, payload=b"\1\2\3\4")))
    assert read_idx(tmp_path / "a").tolist() == read_idx(tmp_path / "b.gz").tolist() == [[1, 2], [3, 4]]
    found = find_or_fetch(tmp_path, "http://127.0.0.1:9/", {"a.gz": "", "b.gz": ""})
    assert found == {"a.gz": tmp_path / "a", "b.gz": tmp_path / "b.gz"}


def test_cut_gzip_stream(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(idx(100, 100))[:-9])
    with pytest.raises(DataError, match="it cannot be read"):
        read_idx(tmp_path / "cut.gz")


def test_cut_cifar_file(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(RECORD * 9_999))
    with pytest.raises(DataError, match="10,000 records of 3073 bytes .* this one has 30,726,927 bytes"):
        load_data("cifar10", {}, tmp_path)


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSIFY_DATA", str(tmp_path))
    assert data_folder() == tmp_path and data_folder("elsewhere").name == "elsewhere"
    monkeypatch.delenv("SPARSIFY_DATA")
    assert data_folder().name == "data"
