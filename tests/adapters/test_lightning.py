"""Lightning's Trainer: its order of backward, callbacks and optimizer, its accumulation, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed (extra: adapters)")
pytestmark = pytest.mark.filterwarnings("ignore")

from sparsify.adapters.lightning import SparsifyCallback  # noqa: E402
from sparsify.errors import RecipeError  # noqa: E402


class Module(lightning.LightningModule):
    def __init__(self, sample: bool = True) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
        self.example_input_array = torch.zeros(1, 12) if sample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(
    folder: Path,
    callback: SparsifyCallback,
    steps: int,
    resume: str | None = None,
    module: Module | None = None,
    accumulate: int = 1,
):
    lightning.seed_everything(0, verbose=False)
    module = module or Module()
    inputs = torch.randn(4, 12).repeat(12, 1)  # Lightning repeats a batch when it resumes, so all are the same
    data = torch.utils.data.TensorDataset(inputs, inputs[:, :4].argmax(1))
    trainer = lightning.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=1.0, default_root_dir=folder,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, 4), ckpt_path=resume)
    return trainer, module


def test_the_trainer_trains_sparse_and_resumes(tmp_path):
    settings = {"sparsity": 0.8, "delta_t": 3, "steps": 12}
    whole, half, rest = (SparsifyCallback(**settings) for _ in range(3))
    _, module = fit(tmp_path, whole, 12)
    sparse = whole.sparse
    assert sparse.state.step == 12 and sparse.state.updates == 3
    for name, mask in sparse.masks.items():
        weight = module.get_parameter(name)
        assert not weight[~mask].any() and not sparse.state.optimizer.state[weight]["exp_avg_sq"][~mask].any()
    trainer, _ = fit(tmp_path, half, 6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, again = fit(tmp_path, rest, 12, str(tmp_path / "half.ckpt"))
    assert rest.sparse.masks.digest() == sparse.masks.digest() and rest.sparse.state.updates == 3
    for name in sparse.masks:
        torch.testing.assert_close(again.get_parameter(name), module.get_parameter(name))


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(RecipeError, match="example_input_array or give `sample`"):
        fit(tmp_path, SparsifyCallback(), 4, module=Module(sample=False))
    callback = SparsifyCallback(torch.zeros(1, 12), delta_t=1)
    fit(tmp_path, callback, 4, module=Module(sample=False), accumulate=2)
    assert (
        callback.sparse.state.step == 4 and callback.sparse.state.updates == 3
    )  # T_end is three quarters of the Trainer's four steps
