"""Lightning's `Trainer`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from sparsify.errors import RecipeError
from sparsify.training.own_loop import SparseOptimizer


class SparsifyCallback(Callback):
    """Trains a LightningModule sparse: `Trainer(..., callbacks=[SparsifyCallback(sparsity=0.9)])`.

    sample: input of the module's forward, by default its `example_input_array`. steps: by default what the Trainer
    estimates. seed and settings are those of `SparseOptimizer`. Masks are part of Lightning's checkpoints. One
    optimizer, automatic optimization.
    """

    def __init__(self, sample: Any = None, *, steps: int | None = None, seed: int = 0, **settings: Any) -> None:
        self._sample, self._steps, self._seed, self._settings = sample, steps, seed, settings
        self._loaded: dict[str, Any] | None = None
        self.sparse: SparseOptimizer | None = None  # from the start of training on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sample = pl_module.example_input_array if self._sample is None else self._sample
        steps = self._steps or trainer.estimated_stepping_batches
        if sample is None or steps == float("inf") or len(trainer.optimizers) != 1:
            raise RecipeError(
                "SparsifyCallback needs one optimizer, a length of training and a sample of the input: set the "
                "module's example_input_array or give `sample`, and give `steps` where the Trainer has neither "
                "max_steps nor max_epochs."
            )
        sample = pl_module.transfer_batch_to_device(sample, pl_module.device, 0)
        optimizer = trainer.optimizers[0]
        given = {"steps": int(steps), "seed": self._seed, "state": self._loaded, **self._settings}
        self.sparse = SparseOptimizer(pl_module, optimizer, sample, **given)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert self.sparse is not None
        self.sparse.prepare()

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.sparse is not None
        self.sparse.complete()  # nothing where gradients are still being accumulated

    def state_dict(self) -> dict[str, Any]:
        return self.sparse.state_dict() if self.sparse is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict or None
