"""Every runtime computes what onnxruntime does, here or in the environment that SPARSIFY_<RUNTIME>_PYTHON names."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.bench.protocol import Contender, ask_layers, compare_outputs, running
from sparsify.bench.results import LayerTime
from sparsify.registry import names
from sparsify.runtimes import load_runtime
from sparsify.sources import export


@pytest.fixture(scope="module")
def wrn(tmp_path_factory):
    path = tmp_path_factory.mktemp("agreement") / "wrn.onnx"
    changes = ["model.depth=10", "model.width=1", "topology.sparsity=0.95", "topology.distribution=uniform"]
    return export("wrn-22-2-cifar10", out=path, changes=changes).path


@pytest.mark.parametrize("name", names("runtimes"))
def test_outputs(name, wrn):
    """In a process of its own, as the benchmark runs it; a second batch means other shapes for what is compiled."""
    runtime = load_runtime(name)
    if reason := runtime.missing() or runtime.refuses(wrn):
        pytest.skip(reason)
    batches = (3,) if runtime.on_request else (1, 3)
    random = np.random.default_rng(0)
    contenders = [Contender("onnxruntime", wrn, 1), Contender(name, wrn, 1)]
    with running(contenders):
        for batch in batches:
            error = compare_outputs(contenders, random.standard_normal((batch, 3, 32, 32), dtype=np.float32))
            assert error < runtime.tolerance
        ask_layers(contenders)
    assert [contender.failure for contender in contenders] == [None, None]
    assert contenders[1].version.startswith(f"{runtime.package} ")
    assert all(isinstance(layer, LayerTime) and layer.ms >= 0 for layer in contenders[1].layers)
