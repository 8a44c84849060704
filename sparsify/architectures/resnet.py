"""ResNets for ImageNet, v1.5 (He et al. 2016; the stride of a bottleneck stands in its 3x3 convolution)."""

from __future__ import annotations

from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # of each stage, by depth
BOTTLENECK = 50  # from this depth on, blocks are 1x1, 3x3, 1x1 with four times the channels at the end
WIDTHS = (64, 128, 256, 512)  # channels of each stage


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, and ReLU where it is asked for."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True) if relu else nn.Identity())


class Block(nn.Module):
    """Residual block: `body` plus the input, projected where the shape changes, then ReLU."""

    def __init__(self, channels_in: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        channels = 4 * width if bottleneck else width
        layers = [ConvNorm(channels_in, width, 3, stride), ConvNorm(width, channels, 3, relu=False)]
        if bottleneck:
            layers = [
                ConvNorm(channels_in, width, 1),
                ConvNorm(width, width, 3, stride),
                ConvNorm(width, channels, 1, relu=False),
            ]
        self.body = nn.Sequential(*layers)
        nn.init.zeros_(layers[-1][1].weight)  # type: ignore[arg-type]  # each block starts as the identity
        changes = stride != 1 or channels_in != channels
        self.shortcut = ConvNorm(channels_in, channels, 1, stride, relu=False) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, channels, h / stride, w / stride]
        return self.relu(self.body(x) + self.shortcut(x))


def build(
    input_shape: tuple[int, int, int], classes: int, depth: int = 50, width_multiplier: float = 1.0
) -> nn.Module:  # fmt: skip
    """ResNet-18, 34, 50 or 101 with a 7x7 stem; width_multiplier scales every layer's channels."""
    if depth not in BLOCKS:
        raise ValueError(f"depth = {depth} must be one of {', '.join(map(str, BLOCKS))}")
    if width_multiplier <= 0:
        raise ValueError(f"width_multiplier = {width_multiplier} must be positive")
    bottleneck = depth >= BOTTLENECK
    channels = max(1, round(WIDTHS[0] * width_multiplier))
    layers: list[nn.Module] = [ConvNorm(input_shape[0], channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True)):
        scaled = max(1, round(width * width_multiplier))
        for index in range(count):
            layers.append(Block(channels, scaled, 2 if stage and not index else 1, bottleneck))
            channels = 4 * scaled if bottleneck else scaled
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
