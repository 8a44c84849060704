"""Loss and accuracy on a test set."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.data import Data


def evaluate(model: nn.Module, data: Data, batch_size: int = 512) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 to 1) over the test set; the model's mode is kept."""
    was_training = model.training
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for inputs, labels in data.test_batches(batch_size):
            outputs = model(inputs)
            loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
            correct += int((outputs.argmax(1) == labels).sum())
    model.train(was_training)
    return loss / len(data.test), correct / len(data.test)
