"""Parts of the runtimes on CUDA GPUs that need none; what they compute on one is in test_agreement.py."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.registry import names
from sparsify.runtimes import load_runtime
from sparsify.runtimes._csr import Csr
from sparsify.runtimes._layers import replace_layers
from sparsify.runtimes._torch import runner
from sparsify.runtimes.torch_cuda_semi_structured import is_two_of_four
from sparsify.sources import export

ON_GPU = [name for name in names("runtimes") if load_runtime(name).on_cuda]


@pytest.fixture(scope="module")
def wrn(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "wrn.onnx"
    changes = ["model.depth=10", "model.width=1", "topology.sparsity=0.95", "topology.distribution=uniform"]
    return export("wrn-22-2-cifar10", out=path, changes=changes).path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ON_GPU)
def test_without_a_gpu_each_says_so(name):
    assert load_runtime(name).missing() == "torch finds no CUDA device"


def test_products_in_csr():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 1, bias=False), nn.Flatten(), nn.Linear(6 * 4, 5)
    ).eval()  # fmt: skip
    with torch.no_grad():
        for index in (0, 1, 2, 4):
            module[index].weight.mul_(torch.rand_like(module[index].weight) < 0.2)
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 4)).astype(np.float32)
    expected = copy.deepcopy(module).double()(torch.from_numpy(x).double()).detach()
    assert replace_layers(module, Csr, least=0.5) == ["0", "2", "4"]
    found = runner(module, device="cpu")(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_layers_below_the_share_of_zeros_stay_dense():
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 2, 1, groups=2))
    with torch.no_grad():
        module[1].weight.zero_()
        module[2].weight.zero_()
    assert replace_layers(module, Csr) == []


def test_two_of_four():
    weight = np.zeros((64, 64), np.float32)
    weight[:, ::2] = 1  # two of each four
    assert is_two_of_four(weight)
    weight[3, 1] = 1  # three of the first four in one row
    assert not is_two_of_four(weight)
    assert not is_two_of_four(np.zeros((64, 60), np.float32)) and not is_two_of_four(np.zeros((64, 64, 1, 1)))


def test_a_network_without_two_of_four_is_refused(wrn):
    assert "2:4" in load_runtime("torch_cuda_semi_structured").refuses(wrn)
