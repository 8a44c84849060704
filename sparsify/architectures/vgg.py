"""VGG with batch norm (Simonyan and Zisserman, Very Deep Convolutional Networks, 2015)."""

from torch import Tensor, nn

# Convolutions of each stage by depth (Simonyan and Zisserman 2015, table 1), and their channels.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096
REDUCTION = 32  # of height and width by the five poolings


class Vgg(nn.Module):
    """3x3 convolutions with batch norm in five stages, each pooled, and three linear layers with dropout."""

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, depth: int, width: float, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = input_shape[0]
        for published, count in zip(CHANNELS, STAGES[depth], strict=True):
            channels = max(1, round(published * width))
            for _ in range(count):
                layers += [nn.Conv2d(channels_in, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = max(1, round(HIDDEN * width))
        inputs = channels_in * (input_shape[1] // REDUCTION) * (input_shape[2] // REDUCTION)
        self.classifier = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        return self.classifier(self.features(x).flatten(1))


def build(
    input_shape: tuple[int, int, int],
    classes: int,
    depth: int = 16,
    dropout: float = 0.5,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """VGG-11, 13, 16 or 19 with `width_multiplier` times the published channels and hidden neurons.

    The first linear layer has as many inputs as the images leave positions: 7 x 7 of them at 224 x 224.
    """
    if depth not in STAGES:
        raise ValueError(f"depth = {depth} must be one of {', '.join(map(str, STAGES))}")
    if not 0 <= dropout < 1 or not width_multiplier > 0:
        raise ValueError(f"dropout = {dropout} must be below 1 and width_multiplier = {width_multiplier} positive")
    if min(input_shape[1:]) < REDUCTION:
        raise ValueError(f"images of {input_shape[1]} x {input_shape[2]} are too small: five poolings need {REDUCTION}")
    return Vgg(input_shape, classes, depth, width_multiplier, dropout)
