"""Convolutional networks: sparse computation trains what masked computation trains."""

from __future__ import annotations

import signal

import pytest
import torch

from sparsify.engine.encode import encoder
from sparsify.engine.target import host
from sparsify.errors import InterruptedTraining
from sparsify.nn import SparseConv2d
from sparsify.recipe import Optimizer, Recipe, load_recipe
from sparsify.sources import open_source
from sparsify.training import deferred
from sparsify.training.loop import train, training
from tests.states import every_state

pytestmark = pytest.mark.skipif(encoder(host().level) is None, reason="there is no native code for this CPU")


def recipe(**optimizer: float) -> Recipe:
    given = load_recipe(None, [
        "training.steps=12", "topology.delta_t=3", "topology.growth_batches=2", "topology.t_end=1.0",
        "topology.sparsity=0.8", 'model={name="wide_resnet", depth=10, width=1}', "training.batch_size=32",
    ])  # fmt: skip
    return given.model_copy(update={"optimizer": Optimizer(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)})


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory):
    """The masked run, and the digest of its masks after each step."""
    with every_state() as states:
        run = train(recipe(), tmp_path_factory.mktemp("masked") / "run", compute="masked")
    return run, [state.masks.digest() for state in states]


def assert_same(ours, theirs) -> None:
    assert ours.metadata.mask_digest == theirs.metadata.mask_digest
    for name, tensor in theirs.tensors.items():
        assert torch.allclose(torch.from_numpy(ours.tensors[name]), torch.from_numpy(tensor), atol=1e-4), name


def test_masks_agree_update_by_update(masked, tmp_path, states):
    run, digests = masked
    sparse = train(recipe(), tmp_path / "run", compute="sparse")
    assert len(states[0].masks.positions) > 5 and len(set(digests)) == 4, "the last update moves nothing"
    for state, digest in zip(states, digests, strict=True):
        assert state.masks.digest() == digest, f"step {state.step}"
    for key in ("loss", "test_loss", "training_flops", "updates", "churn", "grown", "sparsity"):
        assert sparse.line[key] == pytest.approx(run.line[key], rel=1e-3), key
    assert_same(open_source(tmp_path / "run"), open_source(run.folder))


@pytest.mark.parametrize("first, then", [("masked", "sparse"), ("sparse", "masked")])
def test_a_run_moves_through_its_checkpoint(first, then, masked, tmp_path):
    steps = training(recipe(), tmp_path / "run", compute=first)
    with pytest.raises(InterruptedTraining, match="Stopped after step 5"):
        for progress in steps:
            if progress.step == 4:
                signal.raise_signal(signal.SIGTERM)
    train(None, tmp_path / "run", resume=True, compute=then)
    assert_same(open_source(tmp_path / "run"), open_source(masked[0].folder))


def test_large_kernels_are_never_dense(masked, tmp_path, monkeypatch):
    monkeypatch.setattr(deferred, "LARGE", 9000)
    monkeypatch.setattr(SparseConv2d, "from_dense", lambda *_: pytest.fail("a dense layer was made"))
    train(recipe(), tmp_path / "run", compute="sparse")
    assert_same(open_source(tmp_path / "run"), open_source(masked[0].folder))
