"""Image trees - one folder a class - read while training runs: memory does not grow with the data set.

Threads decode ahead of the step that needs them (Pillow lets go of the interpreter while it decodes). What is
drawn at random depends on seed, step and row alone, as for data sets in memory.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.data import WHOLE, DataInfo, Share, normalise, part, stream_rows
from sparsify.errors import DataError
from sparsify.randomness import generator

AHEAD = 4  # batches that are decoded before they are asked for
ATTEMPTS = 20  # files that are tried in place of one that cannot be read
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop (Szegedy et al., Going Deeper with Convolutions, 2015)
BORDER = 1.14  # short side at evaluation before the central crop: 256 for 224
Decoding = list[Future[Tensor]]  # images [3, h, w] of a batch
logger = logging.getLogger("sparsify")


@dataclass(frozen=True, eq=False)
class Files:
    """Names of images and their classes; the classes are the folders' names in alphabetical order."""

    folder: Path
    classes: list[str]
    names: np.ndarray  # [n] bytes, relative to the folder
    labels: Tensor  # [n] int64
    damaged: set[int] = field(default_factory=set)  # rows that could not be read

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class ImageTree:
    """A data set in files, with the interface of `Dataset`."""

    info: DataInfo
    train: Files
    test: Files
    pool: ThreadPoolExecutor
    device: torch.device
    ahead: dict[tuple[int, int, int, Share], Decoding] = field(default_factory=dict)  # by step, size, seed and share

    def to(self, device: torch.device) -> ImageTree:
        return replace(self, device=device)

    def train_batch(self, step: int, size: int, seed: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Inputs [n, c, h, w] and labels [n] of a share of a training step's `size`: random crops, half mirrored."""
        for later in range(step, step + AHEAD):
            if (later, size, seed, share) not in self.ahead:
                self.ahead[later, size, seed, share] = self._start(later, size, seed, share)
        for key in [key for key in self.ahead if key[0] < step]:
            del self.ahead[key]
        pixels = torch.stack([image.result() for image in self.ahead.pop((step, size, seed, share))])
        labels = self.train.labels[part(stream_rows(step, size, seed, len(self.train)), share)]
        return normalise(pixels.to(self.device), self.info), labels.to(self.device)

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in order, central crops; the last batch may be smaller."""
        following = self._start_test(0, size)
        for start in range(0, len(self.test), size):
            images, following = following, self._start_test(start + size, size)
            pixels = torch.stack([image.result() for image in images]).to(self.device)
            yield normalise(pixels, self.info), self.test.labels[start : start + size].to(self.device)

    def _start(self, step: int, size: int, seed: int, share: Share) -> Decoding:
        rows = part(stream_rows(step, size, seed, len(self.train)), share).tolist()
        draws = part(torch.rand(size, 5, generator=generator(seed, "augmentation", step)), share).tolist()
        shape = self.info.input_shape
        return [self.pool.submit(decode, self.train, r, shape, d) for r, d in zip(rows, draws, strict=True)]

    def _start_test(self, start: int, size: int) -> Decoding:
        rows = range(start, min(start + size, len(self.test)))
        return [self.pool.submit(decode, self.test, row, self.info.input_shape, None) for row in rows]


def open_tree(folder: Path, info: DataInfo, train: str, test: str, contents: str) -> ImageTree:
    """The data set in `folder`, whose splits are the folders `train` and `test`.

    contents: what belongs there, for the message. Raises DataError where it is missing or has too many classes.
    """
    if importlib.util.find_spec("PIL") is None:
        raise DataError("Images are decoded by Pillow, which is not installed: pip install 'sparsify-rigl[images]'.")
    pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1), "decode")
    training = list_files(folder / train, info.classes, contents)
    testing = list_files(folder / test, info.classes, contents)
    if unknown := set(testing.classes) - set(training.classes):
        raise DataError(
            f"{folder / test} holds classes that {folder / train} does not: {', '.join(sorted(unknown))}. A class is "
            f"known by its folder's name: give both the same folders."
        )
    places = torch.tensor([training.classes.index(name) for name in testing.classes])
    testing = replace(testing, classes=training.classes, labels=places[testing.labels])
    return ImageTree(info, training, testing, pool, torch.device("cpu"))


def list_files(folder: Path, classes: int, contents: str) -> Files:
    """All images below the class folders of one split, sorted. Raises DataError where there is none."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    images = [
        (f"{label}/{entry.name}", index)
        for index, label in enumerate(found)
        for entry in sorted(os.scandir(folder / label), key=lambda entry: entry.name)
        if Path(entry.name).suffix.lower() in SUFFIXES
    ]
    if not images or len(found) > classes:
        raise DataError(
            f"{folder} holds {len(images):,} images in {len(found)} classes, where up to {classes} classes are known. "
            f"It should hold {contents}. Put them there, or choose another folder with --data or $SPARSIFY_DATA."
        )
    names, labels = zip(*images, strict=True)
    return Files(folder, found, np.array([name.encode() for name in names]), torch.tensor(labels))


def decode(files: Files, row: int, shape: tuple[int, ...], draw: list[float] | None) -> Tensor:
    """The image of a row as uint8 [3, h, w]; a file that cannot be read gives way to the next one that can.

    draw: five numbers in 0..1 that choose a random crop and a mirror; None takes the centre.
    """
    from PIL import Image, UnidentifiedImageError

    for attempt in range(ATTEMPTS):
        place = (row + attempt) % len(files)
        path = files.folder / files.names[place].decode()
        try:
            with Image.open(path) as image:
                size = (shape[2], shape[1])
                image.draft("RGB", (2 * size[0], 2 * size[1]))  # JPEGs are decoded at a fraction of their size
                picture = image.convert("RGB")
                box = _central_box(picture.size, size) if draw is None else _random_box(picture.size, draw)
                picture = picture.resize(size, Image.Resampling.BILINEAR, box)
                if draw is not None and draw[4] < 0.5:
                    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            if place not in files.damaged:
                files.damaged.add(place)
                logger.warning(
                    "%s cannot be read (%s); another image takes its place (%d so far)", path, error, len(files.damaged)
                )
    raise DataError(
        f"{ATTEMPTS} images in a row cannot be read, the last one {path}. The data set is damaged: copy it again."
    )


def _random_box(size: tuple[int, int], draw: list[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of random area and aspect ratio that lies within the image."""
    width, height = size
    area = width * height * (AREA[0] + draw[0] * (AREA[1] - AREA[0]))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** draw[1]
    across, down = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = draw[2] * (width - across), draw[3] * (height - down)
    return left, top, left + across, top + down


def _central_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The central crop that is left when the short side is scaled to 1.14 times the target."""
    width, height = size
    scale = min(width / target[0], height / target[1]) / BORDER
    across, down = target[0] * scale, target[1] * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
