"""Layers are found in the order of use, with the work that they do, and the model is left as it was."""

import torch
from torch import nn

from sparsify.topology.layers import find_layers


class Odd(nn.Module):
    """Defined in one order and used in another, with a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.twice = nn.Linear(8, 8)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Linear(5, 5)

    def forward(self, x):
        x = self.norm(self.depthwise(self.first(x)))
        x = x.flatten(1)[:, :8]
        return self.last(self.twice(self.twice(x)))


def test_layers_in_order_of_use_with_their_positions():
    layers = {layer.name: layer for layer in find_layers(Odd(), torch.zeros(1, 2, 8, 8))}
    assert list(layers) == ["first.weight", "depthwise.weight", "twice.weight", "last.weight"]
    assert layers["first.weight"].positions == 16  # 4 x 4 outputs
    assert layers["first.weight"].flops(10) == 2 * 10 * 16 + 4 * 16
    assert layers["twice.weight"].positions == 2
    assert [layer.sparse for layer in layers.values()] == [True, False, True, True]


def test_model_is_left_as_it_was():
    model = Odd().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_layers(model, torch.ones(1, 2, 8, 8))
    assert model.training and not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
