"""GPT: a transformer that reads tokens from left to right (Radford et al. 2019, GPT-2)."""

import torch
from torch import Tensor, nn

from sparsify.architectures._transformer import Block, scaled_width

EXPANSION = 4  # hidden neurons of a block's linear layers, of its width


class Gpt(nn.Module):
    """Embeddings of tokens and positions, blocks of causal attention, a norm, and a linear layer without bias."""

    def __init__(
        self, context: int, vocabulary: int, classes: int, width: int, depth: int, heads: int, tied: bool
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        blocks = [Block(width, heads, EXPANSION * width, causal=True, epsilon=1e-5) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in blocks:  # the residuals' variance stays whatever the depth (Radford et al. 2019, section 2.3)
            for last in (block.attention.output, block.mlp[-1]):
                nn.init.normal_(last.get_parameter("weight"), std=0.02 / (2 * depth) ** 0.5)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:  # [n, t] int64 -> [n, t, classes]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.positions(places))))


def build(
    input_shape: tuple[int],
    classes: int,
    vocabulary: int,
    width: int = 192,
    depth: int = 6,
    heads: int = 6,
    tied: bool = False,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """GPT for sequences up to the data's length; GPT-2 is 768 wide, with 12 blocks of 12 heads, and tied.

    tied: the last layer's weight is the embedding of tokens. width_multiplier: a factor on the size of each head.
    """
    if depth < 1:
        raise ValueError(f"depth = {depth} must be at least 1")
    if tied and classes != vocabulary:
        raise ValueError(f"tied = true needs as many classes as tokens, and there are {classes} and {vocabulary}")
    scaled = scaled_width(width, heads, width_multiplier)
    return Gpt(input_shape[0], vocabulary, classes, scaled, depth, heads, tied)
