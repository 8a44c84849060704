"""Layers of torch modules by their non-zeros: linear ones and 1x1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from sparsify.gpu.matrix import sparse_matrix
from sparsify.gpu.products import sparse_times_dense, sparse_times_vector


class InferenceLinear(nn.Module):
    """`nn.Linear` by its non-zeros, for inference: [..., in] -> [..., out]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = sparse_matrix(linear.weight.detach()), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) == 1:
            return sparse_times_vector(self.weight, flat[0], self.bias).view(*x.shape[:-1], -1)
        return sparse_times_dense(self.weight, flat.t()[None], self.bias)[0].t().reshape(*x.shape[:-1], -1)


class InferencePointwise(nn.Module):
    """A 1x1 `nn.Conv2d` of stride 1 by its non-zeros, for inference: [n, in, h, w] -> [n, out, h, w]."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = sparse_matrix(conv.weight.detach().flatten(1)), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return sparse_times_dense(self.weight, x.flatten(2), self.bias).view(len(x), -1, *x.shape[2:])


def sparse_layer(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer by its non-zeros; a convolution is 1x1, of stride 1 and in one group."""
    return InferenceLinear(layer) if isinstance(layer, nn.Linear) else InferencePointwise(layer)
