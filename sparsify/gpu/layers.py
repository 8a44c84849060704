"""Layers of a torch module that run sparse: linear ones and 1x1 convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from sparsify.gpu.matrix import sparse_matrix
from sparsify.gpu.products import sparse_times_dense, sparse_times_vector

LEAST_SPARSITY = 0.7  # below it the dense product of the device is left alone


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


def make_sparse(module: nn.Module, least: float = LEAST_SPARSITY) -> list[str]:
    """Replace, in place, every layer that can run sparse and has at least that share of zeros; returns their names."""
    replaced = []
    for name, layer in list(module.named_modules()):
        kind = _kind(layer)
        if kind is None or not name:
            continue
        assert isinstance(layer.weight, Tensor)
        if float((layer.weight == 0).float().mean()) >= least:
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], kind(layer))
            replaced.append(name)
    return replaced


def _kind(layer: nn.Module) -> type[nn.Module] | None:
    if type(layer) is nn.Linear:
        return InferenceLinear
    if type(layer) is nn.Conv2d:
        plain = (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        return InferencePointwise if plain and layer.padding in ((0, 0), "valid", "same") else None
    return None
