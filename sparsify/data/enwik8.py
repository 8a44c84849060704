"""enwik8: the first 100 million bytes of the English Wikipedia of March 2006 (Mahoney), as bytes."""

from pathlib import Path

import pooch

from sparsify.data import DataInfo
from sparsify.data._download import fetch_archive
from sparsify.data._numbered import NumberedData
from sparsify.data._text import Sequences, open_text, text_info

ADDRESS = "https://mattmahoney.net/dc/"
ARCHIVE = "enwik8.zip"
CHECKSUM = "sha256:547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
SIZE = 100_000_000
TRAIN, TEST = 90_000_000, 5_000_000  # bytes at the start and at the end; those between are for validation


def info(length: int = 512, test_bytes: int = TEST) -> DataInfo:
    """Sequences of `length` bytes."""
    if not length < test_bytes <= TEST:
        raise ValueError(f"test_bytes = {test_bytes} must be more than length and at most {TEST:,}")
    return text_info(TRAIN, length)


def load(folder: Path, length: int = 512, test_bytes: int = TEST) -> NumberedData:
    """The usual split of `enwik8/enwik8` in the data folder: 90 million bytes to train on, the last 5 to test on.

    test_bytes: how many of these are used.
    """
    known = info(length, test_bytes)
    path = folder / "enwik8" / "enwik8"
    if not path.is_file():
        unpack = pooch.Unzip(extract_dir=str(path.parent.absolute()))
        fetch_archive(path.parent, ADDRESS, ARCHIVE, CHECKSUM, unpack)
    text = open_text(path, SIZE)
    test = text[SIZE - TEST : SIZE - TEST + test_bytes]
    return NumberedData(known, Sequences(text[:TRAIN], length), Sequences(test, length))
