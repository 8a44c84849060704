"""Every runtime computes what onnxruntime does, here or in the environment that SPARSIFY_<RUNTIME>_PYTHON names."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.bench.protocol import Contender, ask_layers, compare_outputs, running
from sparsify.bench.results import LayerTime
from sparsify.registry import names
from sparsify.runtimes import load_runtime
from sparsify.sources import export

NETWORKS = {  # recipe, changes, shape of a sample
    "wrn": ("wrn-22-2-cifar10", ["model.depth=10", "model.width=1", "topology.distribution=uniform"], (3, 32, 32)),
    "gru": ("char-gru-enwik8", ["model.hidden=32", "data.length=8"], (8,)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    return {
        network: export(recipe, out=folder / f"{network}.onnx", changes=[*changes, "topology.sparsity=0.95"]).path
        for network, (recipe, changes, _) in NETWORKS.items()
    }


def samples(network, count):
    random, shape = np.random.default_rng(0), (count, *NETWORKS[network][2])
    return random.integers(0, 256, shape) if network == "gru" else random.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", names("runtimes"))
def test_outputs(name, network, exported):
    """In a process of its own, as the benchmark runs it; a second batch means other shapes for what is compiled."""
    runtime, path = load_runtime(name), exported[network]
    if reason := runtime.missing() or runtime.refuses(path):
        pytest.skip(reason)
    if runtime.on_request and network != "wrn":
        pytest.skip("it compiles for half a minute; one network tells enough")
    batches = (3,) if runtime.on_request else (1, 3)
    contenders = [Contender("onnxruntime", path, 1), Contender(name, path, 1)]
    with running(contenders):
        for batch in batches:
            error = compare_outputs(contenders, samples(network, batch))
            assert error < runtime.tolerance
        ask_layers(contenders)
    assert [contender.failure for contender in contenders] == [None, None]
    assert contenders[1].version.startswith(f"{runtime.package} ")
    assert all(isinstance(layer, LayerTime) and layer.ms >= 0 for layer in contenders[1].layers)
