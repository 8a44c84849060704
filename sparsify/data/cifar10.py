"""CIFAR-10: 60,000 colour images of 32 x 32 (Krizhevsky 2009), in the official binary version."""

from pathlib import Path

import numpy as np
import pooch
import torch

from sparsify.data import DataInfo, Dataset, Images
from sparsify.data._download import fetch_archive
from sparsify.errors import DataError

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE, CHECKSUM = "cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"
TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
TEST = ["test_batch.bin"]
RECORD = 1 + 3 * 32 * 32  # a label and three planes
INFO = DataInfo((3, 32, 32), classes=10, train_samples=50_000, mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


def load(folder: Path, augment: bool = True) -> Dataset:
    """50,000 training and 10,000 test images from `cifar-10-batches-bin/` in the data folder.

    augment: crop from 4 pixels of padding and mirror, as in the paper.
    """
    files = folder / "cifar-10-batches-bin"
    if not all((files / name).is_file() for name in TRAIN + TEST):
        unpack = pooch.Untar(extract_dir=str(folder.absolute()))
        fetch_archive(files, ADDRESS, ARCHIVE, CHECKSUM, unpack)
    return Dataset(
        INFO,
        _read([files / name for name in TRAIN]),
        _read([files / name for name in TEST]),
        crop_padding=4 if augment else 0,
        flip=augment,
    )


def _read(paths: list[Path]) -> Images:
    records = np.concatenate([_records(path) for path in paths])
    pixels = records[:, 1:].reshape(-1, 3, 32, 32)
    return Images(torch.from_numpy(pixels), torch.from_numpy(records[:, 0].astype(np.int64)))


def _records(path: Path) -> np.ndarray:
    content = np.fromfile(path, np.uint8)
    if len(content) != 10_000 * RECORD or content[::RECORD].max() > 9:
        raise DataError(
            f"{path} is damaged: CIFAR-10's binary files hold 10,000 records of {RECORD} bytes with labels from "
            f"0 to 9, and this one has {len(content):,} bytes. A download was probably cut short. Delete the "
            f"folder {path.parent} and run the command again; it will be downloaded anew."
        )
    return content.reshape(-1, RECORD)
