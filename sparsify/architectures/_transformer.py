"""What the vision transformer and the GPT share: attention and the block around it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with a linear layer for each of queries, keys and values."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # [n, t, width] -> [n, t, width]
        queries, keys, values = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # [n, heads, t, width / heads]
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention and two linear layers with GELU, each after a norm and beside a residual."""

    def __init__(self, width: int, heads: int, hidden: int, causal: bool, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:  # [n, t, width] -> [n, t, width]
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def scaled_width(width: int, heads: int, multiplier: float) -> int:
    """The width with its heads' size times the multiplier. Raises ValueError for impossible sizes."""
    if min(width, heads) < 1 or width % heads:
        raise ValueError(f"width = {width} must be a multiple of heads = {heads}")
    if not multiplier > 0:
        raise ValueError(f"width_multiplier = {multiplier} must be positive")
    return heads * max(1, round(width // heads * multiplier))
