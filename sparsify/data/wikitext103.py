"""WikiText-103 (raw): good and featured articles of the English Wikipedia (Merity et al. 2017), as bytes."""

from pathlib import Path

import pooch

from sparsify.data import DataInfo
from sparsify.data._download import fetch_archive
from sparsify.data._numbered import NumberedData
from sparsify.data._text import Sequences, open_text, text_info

ADDRESS = "https://wikitext.smerity.com/"
ARCHIVE = "wikitext-103-raw-v1.zip"
CHECKSUM = "sha256:91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"
FOLDER, TRAIN, TEST = "wikitext-103-raw", "wiki.train.raw", "wiki.test.raw"
SIZES = {TRAIN: 541_096_898, TEST: 1_290_590}  # bytes


def info(length: int = 512) -> DataInfo:
    """Sequences of `length` bytes."""
    return text_info(SIZES[TRAIN], length)


def load(folder: Path, length: int = 512) -> NumberedData:
    """`wikitext-103-raw/` in the data folder, as its archive unpacks: its texts for training and testing."""
    known, files = info(length), folder / FOLDER
    if not all((files / name).is_file() for name in SIZES):
        fetch_archive(files, ADDRESS, ARCHIVE, CHECKSUM, pooch.Unzip(extract_dir=str(folder.absolute())))
    train, test = (Sequences(open_text(files / name, SIZES[name]), length) for name in (TRAIN, TEST))
    return NumberedData(known, train, test)
