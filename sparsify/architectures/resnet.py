"""ResNet for ImageNet (He et al., Deep Residual Learning for Image Recognition, 2016), version 1.5."""

import torch.nn.functional as F
from torch import Tensor, nn

# Blocks of each stage by depth (He et al. 2016, table 1); from 50 on they are bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, width, h / stride, w / stride]
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3, 1x1 to 4 `width`. The stride is in the 3x3: that is what makes it version 1.5."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(EXPANSION * width)
        self.shortcut = shortcut(channels_in, EXPANSION * width, stride)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, 4 width, h / stride, w / stride]
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    """The identity where the shape stays, a 1x1 projection where it changes."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(channels))


class ResNet(nn.Module):
    """7x7 stem, pooling, four stages of blocks, mean over positions, one linear layer."""

    def __init__(self, channels: int, classes: int, depth: int, width: int) -> None:
        super().__init__()
        block, growth = (Basic, 1) if depth < 50 else (Bottleneck, EXPANSION)
        self.stem = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        channels_in = width
        for stage, count in enumerate(STAGES[depth]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels_in, width << stage, stride))
                channels_in = (width << stage) * growth
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        x = self.pool(F.relu(self.norm(self.stem(x))))
        return self.head(self.blocks(x).mean((2, 3)))


def build(input_shape: tuple[int, int, int], classes: int, depth: int = 50, width: int = 64) -> nn.Module:
    """ResNet-18, 34, 50, 101 or 152; `width` channels in the first stage (64 as published)."""
    if depth not in STAGES:
        raise ValueError(f"depth = {depth} must be one of {', '.join(map(str, STAGES))}")
    if width < 1:
        raise ValueError(f"width = {width} must be at least 1")
    return ResNet(input_shape[0], classes, depth, width)
