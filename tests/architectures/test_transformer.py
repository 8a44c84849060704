"""Blocks compute what torch's own do; a GPT sees no later token; tied weights are one in memory and in files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sparsify.architectures import build
from sparsify.architectures._transformer import Block
from sparsify.errors import RecipeError
from sparsify.formats import load_format, read_model
from sparsify.formats._module import build_module
from sparsify.recipe import load_recipe
from sparsify.topology.layers import find_layers
from sparsify.training.snapshot import initial_snapshot


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_is_torchs_encoder_layer(causal):
    torch.manual_seed(0)
    block = Block(12, 3, 20, causal, epsilon=1e-5).eval()
    layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    attention = block.attention
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [part.get_parameter(name) for part in (attention.query, attention.key, attention.value)]
            layer.self_attn.get_parameter(f"in_proj_{name}").copy_(torch.cat(parts))
        pairs = [(layer.self_attn.out_proj, attention.output), (layer.norm1, block.norm1), (layer.norm2, block.norm2)]
        for theirs, ours in [*pairs, (layer.linear1, block.mlp[0]), (layer.linear2, block.mlp[2])]:
            theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 7, 12)
        mask = nn.Transformer.generate_square_subsequent_mask(7) if causal else None
        torch.testing.assert_close(block(x), layer(x, mask, is_causal=causal))


def test_a_gpt_sees_no_later_token():
    torch.manual_seed(0)
    model = build("gpt", {"width": 24, "heads": 2, "depth": 2}, (9,), 40, 40).eval()
    tokens = torch.randint(0, 40, (1, 9))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 40
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_queries_keys_and_values_are_layers_of_their_own():
    model = build("gpt", {"width": 24, "heads": 2, "depth": 1}, (9,), 40, 40)
    shapes = {layer.name: layer.shape for layer in find_layers(model, torch.zeros(1, 9, dtype=torch.int64))}
    for part in ("query", "key", "value", "output"):
        assert shapes[f"blocks.0.attention.{part}.weight"] == (24, 24)


@pytest.mark.parametrize("name", ["onnx", "safetensors"])
def test_a_tied_weight_is_one_in_memory_and_in_files(name, tmp_path):
    changes = ["model.tied=true", "model.depth=1", "model.width_multiplier=0.25", "data.length=8"]
    model = initial_snapshot(load_recipe("gpt-enwik8", changes))
    assert [layer.sparse for layer in model.layers if layer.name == "embedding.weight"] == [False]
    assert "head.weight" not in model.tensors
    path = tmp_path / f"model{load_format(name).SUFFIX}"
    load_format(name).write(model, path)
    again = build_module(read_model(path))
    assert again.head.weight is again.embedding.weight
    assert np.array_equal(again.head.weight.detach().numpy(), model.tensors["embedding.weight"])


def test_tied_needs_a_class_for_each_token():
    with pytest.raises(RecipeError, match="tied = true needs as many classes as tokens, and there are 10 and 40"):
        build("gpt", {"tied": True}, (9,), 10, 40)
