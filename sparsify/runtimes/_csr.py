"""Layers of torch with their weight in CSR."""

from __future__ import annotations

import warnings

from torch import Tensor, nn


class Csr(nn.Module):
    """A linear layer, [..., in] -> [..., out], or a 1x1 convolution, [n, in, h, w] -> [n, out, h, w]."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight = layer.weight.detach().flatten(1).to_sparse_csr()
        self.bias, self.is_conv = layer.bias, isinstance(layer, nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_conv:
            y = self.weight @ x.transpose(0, 1).flatten(1)  # [out, n h w]
            y = y if self.bias is None else y + self.bias[:, None]
            return y.view(-1, len(x), *x.shape[2:]).transpose(0, 1)
        y = (self.weight @ x.reshape(-1, x.shape[-1]).t()).t()
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)
