"""What is measured on a test set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data import Data

ACCURACY, BITS = "test_accuracy", "test_bits_per_character"
SAMPLES, TOKENS = 512, 16_384  # in a batch: samples, or tokens in whole sequences


def evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """test_loss (mean cross-entropy, nats) and test_accuracy (0 to 1) over the test set; the model's mode is kept.

    For sequences both are over all positions, and test_bits_per_character is the loss in bits.
    """
    info, was_training = data.info, model.training
    size = max(1, TOKENS // info.input_shape[0]) if info.vocabulary else SAMPLES
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for inputs, labels in data.test_batches(size):
            outputs = model(inputs)
            loss += float(cross_entropy(outputs, labels, reduction="sum"))
            correct += int((outputs.argmax(-1) == labels).sum())
            count += labels.numel()
    model.train(was_training)
    measured = {"test_loss": loss / count, ACCURACY: correct / count}
    return measured | ({BITS: loss / count / math.log(2)} if info.vocabulary else {})


def score_name(line: Mapping[str, Any]) -> str:
    """By which of a line's figures a network is judged: bits per character, the fewer the better, or accuracy."""
    return BITS if BITS in line else ACCURACY


def cross_entropy(outputs: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """torch's cross-entropy of [n, classes] against [n], or of [n, t, classes] against [n, t]."""
    return nn.functional.cross_entropy(outputs.flatten(0, -2), labels.flatten(), **options)
