"""MobileNet v2 (Sandler et al., Inverted Residuals and Linear Bottlenecks, 2018)."""

from torch import Tensor, nn

# Expansion, output channels, blocks and first stride of each stage (Sandler et al. 2018, table 2).
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
LAST = 1280


def scaled(channels: int, width: float) -> int:
    """`width` times the channels, rounded to a multiple of 8, by no more than a tenth downwards."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def unit(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU6."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU6(inplace=True)]


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 to fewer without an activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers = unit(channels_in, hidden, 1) if expansion > 1 else []
        layers += unit(hidden, hidden, 3, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, channels, h / stride, w / stride]
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """A 3x3 stem, seventeen inverted residuals, a 1x1, mean over positions, one linear layer."""

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()
        channels_in = scaled(32, width)
        layers = unit(channels, channels_in, 3, 2)
        for expansion, published, blocks, first_stride in STAGES:
            for index in range(blocks):
                channels_out = scaled(published, width)
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels_in, channels_out, stride, expansion))
                channels_in = channels_out
        last = scaled(LAST, max(1.0, width))
        self.features = nn.Sequential(*layers, *unit(channels_in, last, 1))
        self.head = nn.Linear(last, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        return self.head(self.features(x).mean((2, 3)))


def build(input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> nn.Module:
    """MobileNet v2 with `width` times the published channels."""
    if not width > 0:
        raise ValueError(f"width = {width} must be more than 0")
    return MobileNetV2(input_shape[0], classes, width)
