"""PyTorch on a CUDA GPU, linear layers and 1x1 convolutions through cuSPARSE."""

import warnings
from pathlib import Path
from typing import final

from torch import Tensor, nn

from sparsify.runtimes import Run, Runtime
from sparsify.runtimes._cuda import exact_products, module_on, no_device, refuses_foreign, runner
from sparsify.runtimes._layers import replace_layers


@final
class TorchCudaCsr(Runtime):
    """CSR weights times dense activations; other layers as in `torch_cuda`."""

    package = "torch"

    def missing(self) -> str | None:
        return no_device()

    def refuses(self, path: Path) -> str | None:
        return refuses_foreign(path)

    def load(self, path: Path, threads: int) -> Run:
        exact_products()
        module = module_on(path)
        replace_layers(module, Csr)
        return runner(module)


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
