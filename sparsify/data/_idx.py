"""IDX, the format of MNIST and its kin: a big-endian header and unsigned bytes, gzipped or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from sparsify.data import DataInfo, Dataset, Images
from sparsify.data._download import find_or_fetch
from sparsify.errors import DataError

UNSIGNED_BYTE = 8


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes. Raises DataError where the file is not whole."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(_damaged(path, f"it cannot be read ({error})")) from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise DataError(_damaged(path, "it does not begin like an IDX file of bytes"))
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(_damaged(path, "it ends inside its header"))
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        found = f"its header promises {math.prod(shape):,} bytes of data and {len(content) - start:,} are there"
        raise DataError(_damaged(path, found))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def load_idx(folder: Path, address: str, files: Mapping[str, str], info: DataInfo) -> Dataset:
    """A data set of four IDX files, downloaded where they are missing.

    files: MD5 by name, in the order training images, training labels, test images, test labels.
    """
    train_images, train_labels, test_images, test_labels = find_or_fetch(folder, address, files).values()
    train = read_images(train_images, train_labels, info.classes)
    return Dataset(info, train, read_images(test_images, test_labels, info.classes))


def read_images(images: Path, labels: Path, classes: int) -> Images:
    """Images [n, 1, h, w] and labels of a pair of IDX files."""
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or targets.ndim != 1 or len(pixels) != len(targets):
        found = f"holds {pixels.shape} pixels beside {targets.shape} labels in {labels.name}"
        raise DataError(_damaged(images, f"it {found}"))
    if targets.size and targets.max() >= classes:
        raise DataError(_damaged(labels, f"it holds the label {targets.max()} where {classes} classes are known"))
    return Images(torch.from_numpy(pixels[:, None]), torch.from_numpy(targets.astype(np.int64)))


def _damaged(path: Path, found: str) -> str:
    return (
        f"{path} is damaged: {found}. A download or copy was probably cut short. "
        f"Delete the file and run the command again; it will be downloaded anew."
    )
