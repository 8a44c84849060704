"""LeNet-300-100 and other multilayer perceptrons."""

import math
from itertools import pairwise

from torch import nn


def build(
    input_shape: tuple[int, ...], classes: int, hidden: tuple[int, ...] = (300, 100), width_multiplier: float = 1.0
) -> nn.Module:
    """Fully connected network with ReLU (LeCun et al. 1998).

    hidden: neurons of each hidden layer, which width_multiplier scales.

    Weights start by Glorot's uniform rule and biases at 0, as in the code of Evci et al. 2020.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden = {hidden} must name at least one layer of at least one neuron")
    if width_multiplier <= 0:
        raise ValueError(f"width_multiplier = {width_multiplier} must be positive")
    scaled = [max(1, round(width_multiplier * neurons)) for neurons in hidden]
    widths = [math.prod(input_shape), *scaled, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
