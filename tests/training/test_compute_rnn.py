"""The user's own networks with torch.nn.GRU and LSTM, and with several matrices in one weight, masked and sparse."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import InterruptedTraining
from sparsify.formats import read_model
from sparsify.nn import SparseLinear, SparseRNN
from sparsify.recipe import Optimizer, Recipe, load_recipe
from sparsify.sources import export
from sparsify.training.loop import Result, train, training
from sparsify.training.run_folder import model_file


class Rows(nn.Module):
    """Reads the rows of the digits as a sequence, there and back; queries, keys and values as one weight behind it."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn = kind(8, 20, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.qkv, self.head = nn.Linear(40, 60), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:  # [n, 1, 8, 8]
        query, key, value = self.qkv(self.rnn(x.squeeze(1))[0]).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(query, key, value).mean(1))


def network(kind: type[nn.RNNBase]) -> Rows:
    torch.manual_seed(0)
    return Rows(kind)


def recipe(method: str = "rigl") -> Recipe:
    given = load_recipe(None, [
        f"topology.method={method}", "training.steps=12", "topology.delta_t=3", "topology.t_end=1.0",
        "topology.sparsity=0.8", "topology.distribution=uniform",
        'topology.layers={"qkv" = {parts = 3}, "head" = "dense"}',
    ])  # fmt: skip
    return given.model_copy(update={"optimizer": Optimizer(name="adam", lr=0.01, weight_decay=1e-4)})


def content(run: Result) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in read_model(model_file(run.folder)).tensors.items()}


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_masks_agree_update_by_update(kind, method, tmp_path, states):
    runs = [train(recipe(method), tmp_path / c, model=network(kind), compute=c) for c in ("masked", "sparse")]
    masked, sparse = states[:12], states[12:]
    assert len(sparse[0].masks.positions) == 9 and not sparse[0].masks.tensors
    assert isinstance(runs[1].model.rnn, SparseRNN) and isinstance(runs[1].model.qkv, SparseLinear)
    for ours, theirs in zip(sparse, masked, strict=True):
        assert ours.masks.digest() == theirs.masks.digest(), f"step {ours.step}"
    assert len({state.masks.digest() for state in states}) == 4, "the last update moves nothing"
    for key in ("loss", "test_loss", "training_flops", "churn", "grown", "sparsity", "itop_rate"):
        assert runs[1].line[key] == pytest.approx(runs[0].line[key], rel=1e-3), key
    found, wanted = map(content, reversed(runs))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=1e-3), name


@pytest.mark.parametrize("first, then", [("masked", "sparse"), ("sparse", "masked")])
def test_a_run_moves_through_its_checkpoint(first, then, tmp_path, states):
    whole = train(recipe(), tmp_path / "whole", model=network(nn.LSTM), compute="masked")
    digest = states[-1].masks.digest()
    with pytest.raises(InterruptedTraining, match="Stopped after step 8"):
        for progress in training(recipe(), tmp_path / "run", model=network(nn.LSTM), compute=first):
            if progress.step == 7:
                signal.raise_signal(signal.SIGTERM)
    run = train(None, tmp_path / "run", model=network(nn.LSTM), resume=True, compute=then)
    assert states[-1].masks.digest() == digest
    assert run.line["test_loss"] == pytest.approx(whole.line["test_loss"], rel=1e-3)
    packed = export(run, out=tmp_path / "packed.sparse.safetensors", packed=True)
    assert packed.digest == digest
