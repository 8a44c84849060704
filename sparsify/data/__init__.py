"""Data sets. One file each; files whose names begin with an underscore are what they share.

A data set is a function `load(folder, ...) -> Data`; `folder` is the one that holds all data sets, and the other
arguments are the keys of a recipe's [data] section. What is known without its files is a constant `INFO`, or, where
it depends on those keys, a function `info(...)` of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsify import registry
from sparsify.errors import DataError
from sparsify.randomness import generator
from sparsify.references import import_reference, is_reference


@dataclass(frozen=True, eq=False)
class Images:
    """Images as their files hold them, and their classes."""

    pixels: Tensor  # [n, channels, height, width] uint8
    labels: Tensor  # [n] int64

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set without its files; enough to build a network for it."""

    input_shape: tuple[int, ...]  # of one sample: [channels, height, width], or [length] of a sequence of tokens
    classes: int
    train_samples: int
    mean: tuple[float, ...] = ()  # of each channel, in the units of the pixels; none for tokens
    std: tuple[float, ...] = ()
    vocabulary: int = 0  # distinct tokens; 0 where inputs are not tokens

    def zeros(self, count: int = 1) -> Tensor:
        """Inputs of zeros, [count, *input_shape]: float32, or int64 for tokens."""
        return torch.zeros(count, *self.input_shape, dtype=torch.int64 if self.vocabulary else torch.float32)


Share = tuple[int, int]  # a part of a batch, counted from 0, and how many equal parts there are: a rank and all ranks
WHOLE: Share = (0, 1)


class Data(Protocol):
    """What training needs of a data set, wherever its samples are.

    A batch is inputs [n, ...] and labels: a class for each sample [n], or one for each position of a sequence [n, t].
    Each rank asks for its share of a training batch and is spared the rest.
    """

    @property
    def info(self) -> DataInfo: ...
    @property
    def train(self) -> Sized: ...
    @property
    def test(self) -> Sized: ...
    def to(self, device: torch.device) -> Data: ...
    def train_batch(self, step: int, size: int, seed: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]: ...
    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in memory, and how its images become a network's input."""

    info: DataInfo
    train: Images
    test: Images
    crop_padding: int = 0  # augmentation: shift by up to so many pixels
    flip: bool = False  # augmentation: mirror half of the images

    def to(self, device: torch.device) -> Dataset:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def train_batch(self, step: int, size: int, seed: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Inputs [n, c, h, w] and labels [n] of a share of a training step's `size`, counted from 1; augmented.

        Depends on nothing but its arguments: the stream is one permutation of the training set after
        another, so every epoch shows each image once, and a resumed run continues where it was.
        """
        rows = part(stream_rows(step, size, seed, len(self.train)), share)
        rows = send(rows, self.train.labels.device)
        inputs = normalise(self.train.pixels[rows], self.info)
        return self._augment(inputs, generator(seed, "augmentation", step), size, share), self.train.labels[rows]

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole test set in order; the last batch may be smaller."""
        for start in range(0, len(self.test), size):
            part = slice(start, start + size)
            yield normalise(self.test.pixels[part], self.info), self.test.labels[part]

    def _augment(self, inputs: Tensor, random: torch.Generator, size: int, share: Share) -> Tensor:
        if self.crop_padding:
            offsets = torch.randint(0, 2 * self.crop_padding + 1, (2, size, 1), generator=random)
            inputs = _shift(inputs, self.crop_padding, send(part(offsets, share, 1), inputs.device))
        if self.flip:
            mirror = send(part(torch.rand(size, generator=random), share), inputs.device) < 0.5
            inputs = torch.where(mirror.view(-1, 1, 1, 1), inputs.flip(3), inputs)
        return inputs


def normalise(pixels: Tensor, info: DataInfo) -> Tensor:
    """uint8 [n, c, h, w] to float32, each channel less its mean and divided by its standard deviation."""
    mean, std = _statistics(info, pixels.device)
    return (pixels.float() - mean) / std


@lru_cache(maxsize=4)
def _statistics(info: DataInfo, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, channels, 1, 1], sent to the device once: a GPU waits for what is sent."""
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (info.mean, info.std))
    return mean, std


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor from the CPU on the device, without waiting for what a GPU is still doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def stream_rows(step: int, size: int, seed: int, count: int) -> Tensor:
    """Rows [size] of a training set of `count` that a step sees: one permutation after another, without a gap."""
    positions = torch.arange((step - 1) * size, step * size)
    first, last = int(positions[0]) // count, int(positions[-1]) // count
    orders = [_order(count, seed, epoch) for epoch in range(first, last + 1)]
    return torch.cat(orders)[positions - first * count]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch shows the training set."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def part(whole: Tensor, share: Share, dim: int = 0) -> Tensor:
    """A rank's share of what is known of a whole batch."""
    return whole.chunk(share[1], dim)[share[0]]


def _shift(inputs: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Crop each image at offsets [2, n, 1] after padding with its mean, without a loop over images."""
    count, _, height, width = inputs.shape
    rows = offsets[0] + torch.arange(height, device=inputs.device)  # [n, h]
    columns = offsets[1] + torch.arange(width, device=inputs.device)  # [n, w]
    padded = torch.nn.functional.pad(inputs, [padding] * 4)
    samples = torch.arange(count, device=inputs.device)
    return padded[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def data_folder(given: str | Path | None = None) -> Path:
    """The folder of all data sets: the one given, $SPARSIFY_DATA, or ~/data."""
    return Path(given or os.environ.get("SPARSIFY_DATA") or "~/data").expanduser()


def data_info(name: str, options: Mapping[str, Any]) -> DataInfo:
    """What is known of the named data set without its files. Raises RecipeError for an option.

    Data of the user's own ("package.module:function") is made for that.
    """
    if is_reference(name):
        return load_data(name, options).info
    module: Any = registry.load("data", name)
    info: DataInfo = registry.configure(module.info, "data", options) if hasattr(module, "info") else module.INFO
    return info


def load_data(name: str, options: Mapping[str, Any], folder: str | Path | None = None) -> Data:
    """The named data set from the data folder, downloaded where it is missing.

    Raises DataError where it cannot be had or is damaged, RecipeError for an option.
    """
    if is_reference(name):
        from sparsify.data._own import own_data

        return own_data(registry.configure(import_reference(name), "data", options))
    module: Any = registry.load("data", name)
    dataset: Data = registry.configure(module.load, "data", options, folder=data_folder(folder))
    if not isinstance(dataset, Dataset):
        return dataset
    found, promised = tuple(dataset.train.pixels.shape), dataset.info
    if found != (promised.train_samples, *promised.input_shape):
        raise DataError(
            f"The files of {name} hold training images of shape {found}, not "
            f"{(promised.train_samples, *promised.input_shape)}: they are another data set of the same name. "
            f"Put the published files there, or choose another folder with --data."
        )
    return dataset
