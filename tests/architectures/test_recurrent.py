"""The GRU and the LSTM with a matrix for each gate compute what torch's own compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.architectures import build
from sparsify.architectures._recurrent import GATES, Recurrent
from sparsify.errors import RecipeError
from sparsify.topology.layers import find_layers

TORCH = {"gru": nn.GRU, "lstm": nn.LSTM}


@pytest.mark.parametrize("kind", GATES)
def test_equal_to_torch(kind):
    torch.manual_seed(0)
    ours, theirs = Recurrent(kind, 5, 7), TORCH[kind](5, 7, batch_first=True)
    with torch.no_grad():
        for part, suffix in ((ours.input, "ih"), (ours.state, "hh")):
            theirs.get_parameter(f"weight_{suffix}_l0").copy_(torch.cat([gate.weight for gate in part.values()]))
            theirs.get_parameter(f"bias_{suffix}_l0").copy_(torch.cat([gate.bias for gate in part.values()]))
    x = torch.randn(3, 11, 5)
    expected, _ = theirs(x)
    assert torch.equal(ours(x), expected)
    ours(x).square().sum().backward()
    expected.square().sum().backward()
    whole = torch.cat([gate.weight.grad for gate in ours.state.values()])
    torch.testing.assert_close(whole, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("kind", GATES)
def test_each_gate_is_a_layer_used_once_a_step(kind):
    model = build(f"char_{kind}", {"embedding": 6, "hidden": 8, "readout": [5]}, (9,), 256, 256)
    layers = {layer.name: layer for layer in find_layers(model, torch.zeros(1, 9, dtype=torch.int64))}
    with torch.device("meta"):
        same = build(f"char_{kind}", {"embedding": 6, "hidden": 8, "readout": [5]}, (9,), 256, 256)
        unseen = find_layers(same, torch.zeros(1, 9, dtype=torch.int64))
    assert [layer.name for layer in unseen] == list(layers), "masks are drawn in this order"
    gates = [name for name in layers if "_gate." in name]
    assert len(gates) == 2 * len(GATES[kind]) and len(layers) == len(gates) + 3
    assert not layers["embedding.weight"].sparse and layers.pop("embedding.weight").positions == 0
    assert all(layer.sparse and layer.positions == 9 for layer in layers.values())
    assert all(layers[name].shape == ((8, 6) if ".input." in name else (8, 8)) for name in gates)


@pytest.mark.parametrize("kind", GATES)
def test_sizes_of_the_paper(kind):
    """GRU 512, embedding 128, read-out 256 and 128, vocabulary 256 (Evci et al. 2020, 4.2), counted by torch's own."""
    model = build(f"char_{kind}", {}, (512,), 256, 256)
    parts = [nn.Embedding(256, 128), TORCH[kind](128, 512), nn.Linear(512, 256), nn.Linear(256, 128)]
    parts.append(nn.Linear(128, 256))
    expected = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_data_and_architecture_must_go_together():
    with pytest.raises(RecipeError, match=r"samples of shape \[3, 8, 8\], which the architecture char_gru does not"):
        build("char_gru", {}, (3, 8, 8), 10)
    with pytest.raises(RecipeError, match="sequences of tokens, which the architecture lenet does not take"):
        build("lenet", {}, (16,), 256, 256)
