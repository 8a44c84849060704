"""Every architecture of the project, from both of torch's exporters: the engine agrees with onnxruntime."""

import logging
import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from sparsify import registry
from sparsify.architectures import build, reads_tokens
from sparsify.engine import InferenceSession
from tests.smallest import data_of, options

BATCHES = (1, 3, 16, 64)


def sparse_network(name):
    """In evaluation mode, with 80 % of the weights zero and statistics of batch norms that are their own."""
    torch.manual_seed(0)
    module = build(name, options(name), *data_of(name)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter *= (torch.rand_like(parameter) < 0.2) * 5**0.5
        for key, buffer in module.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
    return module


def sample(name, n):
    random, (shape, _, vocabulary) = np.random.default_rng(n), data_of(name)
    if reads_tokens(name):
        return random.integers(0, vocabulary, (n, *shape))
    return random.standard_normal((n, *shape)).astype(np.float32)


def export(module, x, path, dynamo):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        names = {"input_names": ["x"], "output_names": ["y"]}
        if dynamo:
            axes = ({0: torch.export.Dim.AUTO},)
            torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=axes, verbose=False, **names)
        else:
            axes = {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(module, (x,), path, dynamo=False, dynamic_axes=axes, opset_version=17, **names)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", registry.names("architectures"))
def test_agrees_with_onnxruntime(name, dynamo, tmp_path):
    path = tmp_path / "net.onnx"
    export(sparse_network(name), torch.from_numpy(sample(name, 2)), path, dynamo)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level, quiet.intra_op_num_threads = 4, 1
    theirs, ours = onnxruntime.InferenceSession(path, quiet), InferenceSession(path, threads=2)
    for n in BATCHES:
        x = {"x": sample(name, n)}
        (expected,), (got,) = theirs.run(None, x), ours.run(None, x)
        assert got.shape == expected.shape and got.dtype == expected.dtype
        assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    assert {row.kernel for row in ours.explain().rows}.isdisjoint({"python"}), "the whole network is one native call"
