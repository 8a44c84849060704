"""WideResNet for small images (Zagoruyko and Komodakis, Wide Residual Networks, 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-activation residual block: BN, ReLU, 3x3, BN, ReLU, dropout, 3x3."""

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        changes = stride != 1 or channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, channels, h / stride, w / stride]
        y = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)))
        return skip + self.conv2(self.dropout(y))


class WideResNet(nn.Module):
    """Three groups of (depth - 4) / 6 blocks with widths[1], widths[2] and widths[3] channels."""

    def __init__(self, channels: int, classes: int, depth: int, widths: list[int], dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        blocks = [
            Block(widths[group] if first else widths[group + 1], widths[group + 1], stride, dropout)
            for group in range(3)
            for first, stride in [(True, 1 if group == 0 else 2)] + [(False, 1)] * ((depth - 4) // 6 - 1)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[3])
        self.head = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


def build(
    input_shape: tuple[int, int, int],
    classes: int,
    depth: int = 22,
    width: int = 2,
    dropout: float = 0.0,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """WRN-depth-width; depth is 6 n + 4. WRN-22-2 is the paper's network for CIFAR-10.

    width_multiplier: on top of `width`, a factor on every layer's channels, the stem's too.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth = {depth} must be 6 n + 4, such as 10, 16, 22, 28 or 40")
    if width < 1 or not 0 <= dropout < 1:
        raise ValueError(f"width = {width} must be at least 1 and dropout = {dropout} below 1")
    if width_multiplier <= 0:
        raise ValueError(f"width_multiplier = {width_multiplier} must be positive")
    channels = (16, 16 * width, 32 * width, 64 * width)
    widths = [max(1, round(width_multiplier * count)) for count in channels]
    return WideResNet(input_shape[0], classes, depth, widths, dropout)
