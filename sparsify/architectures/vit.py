"""Vision transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, 2021)."""

import torch
from torch import Tensor, nn

from sparsify.architectures._transformer import Block, scaled_width

EXPANSION = 4  # hidden neurons of a block's linear layers, of its width


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks, a norm, and a linear layer on the class token."""

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, width: int, depth: int, heads: int, patch: int
    ) -> None:
        super().__init__()
        channels, height, across = input_shape
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (height // patch) * (across // patch), width))
        blocks = [Block(width, heads, EXPANSION * width, causal=False, epsilon=1e-6) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # [n, c, h, w] -> [n, classes]
        patches = self.patches(x).flatten(2).transpose(1, 2)  # [n, patches, width]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def build(
    input_shape: tuple[int, int, int],
    classes: int,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    patch: int = 16,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """ViT of `depth` blocks: Ti is 192 wide with 3 heads, S 384 with 6, B 768 with 12 (Touvron et al. 2021, table 1).

    patch: height and width of a patch. width_multiplier: a factor on the size of each head.
    """
    if depth < 1 or patch < 1 or input_shape[1] % patch or input_shape[2] % patch:
        sides = f"{input_shape[1]} and {input_shape[2]}"
        raise ValueError(f"depth = {depth} must be at least 1, and patch = {patch} a divisor of {sides}")
    scaled = scaled_width(width, heads, width_multiplier)
    return VisionTransformer(input_shape, classes, scaled, depth, heads, patch)
