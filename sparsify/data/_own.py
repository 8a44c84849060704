"""Data of the user's own: a training and a test set, as tensors or as torch data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from sparsify.data import Data, DataInfo, send
from sparsify.data._numbered import NumberedData
from sparsify.errors import DataError

FORM = "a pair (train, test), each a pair of tensors (inputs [n, ...], labels [n]) or a torch Dataset of such samples"


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """A training or a test set of the user's."""

    source: Any  # (inputs, labels) in memory, or anything with a length and items (input, label)
    device: torch.device | None = None  # of the batches; None leaves them where they are

    def __len__(self) -> int:
        return len(self.source[0]) if isinstance(self.source, tuple) else len(self.source)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [rows, ...], float32 or int64, and labels [rows] or [rows, t] int64."""
        if isinstance(self.source, tuple):
            rows = send(rows, self.source[0].device)
            inputs, labels = (tensor[rows] for tensor in self.source)
        else:
            inputs, labels = default_collate([self.source[row][:2] for row in rows.tolist()])
        inputs = inputs if inputs.dtype == torch.int64 else inputs.float()
        return inputs.to(self.device), labels.long().to(self.device)

    def to(self, device: torch.device) -> OwnSamples:
        held = tuple(tensor.to(device) for tensor in self.source) if isinstance(self.source, tuple) else self.source
        return OwnSamples(held, device)


def own_data(given: Any) -> Data:
    """What a user gave as data. Raises DataError where it is nothing that can be trained on."""
    if all(hasattr(given, name) for name in ("info", "train_batch", "test_batches", "to")):
        data: Data = given
        return data
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise DataError(f"Data of your own has to be {FORM}; this is a {type(given).__name__}.")
    train, test = (_samples(each, name) for each, name in zip(given, ("training", "test"), strict=True))
    return NumberedData(_info(train), train, test)


def _samples(given: Any, name: str) -> OwnSamples:
    """A training or test set, checked."""
    tensors = isinstance(given, (tuple, list)) and bool(given) and all(isinstance(each, Tensor) for each in given)
    if tensors and (len(given) != 2 or len(given[0]) != len(given[1])):
        raise DataError(f"The {name} set is not a pair of equally many inputs and labels. Data has to be {FORM}.")
    found = tuple(given) if tensors else given
    numbered = hasattr(found, "__getitem__") and hasattr(found, "__len__") and not isinstance(found, Tensor)
    if not numbered or not len(found) or not len(OwnSamples(found)):
        raise DataError(f"The {name} set is empty, or gives no sample by its number. Data has to be {FORM}.")
    return OwnSamples(found)


def _info(train: OwnSamples) -> DataInfo:
    inputs, _ = train.batch(torch.arange(1))
    held = train.source if isinstance(train.source, tuple) else None
    classes = int(held[1].max()) + 1 if held else len(getattr(train.source, "classes", ()))
    vocabulary = 0
    if inputs.dtype == torch.int64:
        vocabulary = int(held[0].max()) + 1 if held else int(getattr(train.source, "vocabulary", 0))
        if not vocabulary:
            raise DataError("The inputs are whole numbers, and the Dataset has no `vocabulary` that says how many.")
    return DataInfo(tuple(inputs.shape[1:]), classes, len(train), vocabulary=vocabulary)
