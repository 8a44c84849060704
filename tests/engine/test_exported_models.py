"""Networks of every kind that the project trains, from both of torch's exporters, at several sizes."""

import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.engine import InferenceSession


def cbr(i, o, k, s=1, g=1, activation=nn.ReLU):
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), activation())


class Residual(nn.Module):
    """A strided bottleneck with a projection, then one without, then a depthwise pair."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True))
        self.a, self.b = cbr(8, 8, 1), cbr(8, 8, 3, 2)
        self.c = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16))
        self.depthwise = nn.Sequential(cbr(16, 16, 3, g=16, activation=nn.ReLU6), cbr(16, 12, 1, activation=nn.SiLU))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 10))

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.c(self.b(self.a(x))) + self.down(x))
        return self.head(self.depthwise(x).mean((2, 3)))


class PreActivation(nn.Module):
    """Batch norm before the convolution, as in wide residual networks."""

    def __init__(self):
        super().__init__()
        self.stem, self.n1, self.c1 = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, 2, 1, bias=False),
        )
        self.n2, self.c2, self.short = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1, 2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        y = torch.relu(self.n1(self.stem(x)))
        y = self.c2(torch.relu(self.n2(self.c1(y)))) + self.short(y)
        return self.fc(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 33), nn.ReLU(), nn.Linear(33, 20), nn.Tanh())
        self.norm, self.out = nn.BatchNorm1d(20), nn.Linear(20, 7)

    def forward(self, x):
        return torch.log_softmax(self.out(self.norm(self.layers(x))), -1)


class Conv1d(nn.Module):
    """Dilated and strided convolutions over one axis."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(5, 12, 3, padding=2, dilation=2), nn.BatchNorm1d(12), nn.ReLU(),
            nn.Conv1d(12, 12, 5, stride=2, padding=2, groups=3), nn.GELU(), nn.AvgPool1d(2),
            nn.Conv1d(12, 6, 1), nn.AdaptiveAvgPool1d(1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x).squeeze(-1)


class Decoder(nn.Module):
    """Transposed convolutions: strided, dilated, in groups, and one that cuts more than its kernel reaches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, groups=2), nn.BatchNorm2d(12), nn.GELU(),
            nn.ConvTranspose2d(12, 6, 3, stride=(2, 1), padding=1, output_padding=(1, 0)), nn.Tanh(),
            nn.ConvTranspose2d(6, 4, 3, dilation=2), nn.ConvTranspose2d(4, 5, 1, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, x):
        return nn.functional.normalize(self.layers(x), dim=1).tril(2) ** 3


class CharGru(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru = nn.Embedding(40, 12), nn.GRU(12, 19, num_layers=2, batch_first=True)
        self.out = nn.Sequential(nn.Linear(19, 11), nn.ReLU(), nn.Linear(11, 40))

    def forward(self, x):
        return self.out(self.gru(self.embed(x))[0])


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(40, 12), nn.LSTM(12, 9, bidirectional=True)
        self.out = nn.Linear(18, 6)

    def forward(self, x):
        sequence, (h, c) = self.lstm(self.embed(x).transpose(0, 1))
        return self.out(sequence[-1]) + h.sum() + c.mean()


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.layer = nn.TransformerEncoderLayer(24, 4, 31, dropout=0.1, activation="gelu", batch_first=True)
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 40)

    def forward(self, x):
        return self.out(self.norm(self.layer(self.embed(x))))


class Attention(nn.Module):
    """Causal attention written out."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(40, 24), nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x):
        n, t = x.shape
        q, k, v = self.qkv(self.embed(x)).view(n, t, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, 24))


IMAGES, TOKENS, SIGNAL = "images", "tokens", "signal"
NETWORKS = {
    Residual: IMAGES, PreActivation: IMAGES, Decoder: IMAGES, Mlp: IMAGES, Conv1d: SIGNAL,
    CharGru: TOKENS, BothWays: TOKENS, Transformer: TOKENS, Attention: TOKENS,
}  # fmt: skip
BAKED = {("BothWays", True), ("Transformer", False)}  # torch writes the sample's length into these files
LENGTHS = {IMAGES: (16,), TOKENS: (7, 13), SIGNAL: (20,)}


def sample(kind, n, length, rng):
    if kind == TOKENS:
        return rng.integers(0, 40, (n, length))
    shape = (n, 3, length, length) if kind == IMAGES else (n, 5, length)
    return rng.standard_normal(shape).astype(np.float32)


def sparse_network(network):
    """An instance in evaluation mode: 80 % of the weights zero, batch norm with statistics of its own."""
    torch.manual_seed(0)
    module = network().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter *= (torch.rand_like(parameter) < 0.2) * 2
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                for values in (part.weight, part.running_var):
                    values.uniform_(0.5, 1.5)
                for values in (part.bias, part.running_mean):
                    values.normal_()
    return module


def export(module, x, path, dynamo, is_long):
    """Batch and, for tokens, length left open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        common = {"input_names": ["x"], "output_names": ["y"]}
        if dynamo:
            auto = torch.export.Dim.AUTO
            axes = ({0: auto, 1: auto},) if is_long else ({0: auto},)
            torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=axes, verbose=False, **common)
        else:
            axes = {"x": {0: "n", 1: "t"} if is_long else {0: "n"}}
            torch.onnx.export(module, (x,), path, dynamo=False, dynamic_axes=axes, opset_version=17, **common)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_exported(network, dynamo, tmp_path, rng):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    kind = NETWORKS[network]
    module = sparse_network(network)
    x = torch.from_numpy(sample(kind, 2, LENGTHS[kind][0], rng))
    path = tmp_path / "net.onnx"
    export(module, x, path, dynamo, kind == TOKENS)
    session = InferenceSession(path, threads=2)
    name = session.get_inputs()[0].name
    for n in (1, 3, 16):
        for length in LENGTHS[kind][: 1 if (network.__name__, dynamo) in BAKED else None]:
            x = sample(kind, n, length, rng)
            with torch.no_grad():
                expected = module(torch.from_numpy(x)).numpy()
            (y,) = session.run(None, {name: x})
            assert y.shape == expected.shape
            assert np.abs(y - expected).max() < 1e-4 * np.abs(expected).max()
    assert session.explain().foreign == ()
