"""MobileNet v1 (Howard et al., MobileNets, 2017)."""

from torch import Tensor, nn

# Output channels and stride of each depthwise-separable pair (Howard et al. 2017, table 1).
PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]


def unit(channels_in: int, channels: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class MobileNetV1(nn.Module):
    """A 3x3 stem, thirteen pairs of depthwise 3x3 and pointwise 1x1, mean over positions, one linear layer."""

    def __init__(self, channels: int, classes: int, width: float) -> None:
        super().__init__()
        channels_in = round(32 * width)
        layers = unit(channels, channels_in, 3, 2)
        for published, stride in PAIRS:
            channels_out = round(published * width)
            layers += unit(channels_in, channels_in, 3, stride, groups=channels_in)
            layers += unit(channels_in, channels_out, 1, 1)
            channels_in = channels_out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels_in, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        return self.head(self.features(x).mean((2, 3)))


def build(input_shape: tuple[int, int, int], classes: int, width: float = 1.0) -> nn.Module:
    """MobileNet v1 with `width` times the published channels."""
    if not width >= 1 / 32:
        raise ValueError(f"width = {width} leaves no channel; it must be at least 1/32")
    return MobileNetV1(input_shape[0], classes, width)
