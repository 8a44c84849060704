"""LeNet-300-100 and other multilayer perceptrons."""

import math
from itertools import pairwise

from torch import nn


def build(input_shape: tuple[int, ...], classes: int, hidden: tuple[int, ...] = (300, 100)) -> nn.Module:
    """Fully connected network with ReLU (LeCun et al. 1998). hidden: neurons of each hidden layer."""
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden = {hidden} must name at least one layer of at least one neuron")
    widths = [math.prod(input_shape), *hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
