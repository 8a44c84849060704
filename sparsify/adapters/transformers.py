"""Hugging Face's `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sparsify.errors import CheckpointError, RecipeError
from sparsify.files import write_with
from sparsify.training.own_loop import SparseOptimizer, unwrapped

FILE = "sparsify.pt"  # in each of the Trainer's checkpoints


class SparsifyCallback(TrainerCallback):
    """Trains a Trainer's model sparse: `Trainer(..., callbacks=[SparsifyCallback(sparsity=0.9)])`.

    sample: input of the model, by default the first item of the training set. seed and settings are those of
    `SparseOptimizer`. Masks are saved in the Trainer's checkpoints and found again there. The Trainer clips
    gradients before it lets callbacks see them, which scales them all alike and so changes no choice of connections.
    """

    def __init__(self, sample: Any = None, *, seed: int = 0, **settings: Any) -> None:
        self._sample, self._seed, self._settings = sample, seed, settings
        self.sparse: SparseOptimizer | None = None  # from the start of training on

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])  # accelerate wraps it
        model = unwrapped(given["model"])
        sample = _first(given["train_dataloader"]) if self._sample is None else self._sample
        sample = _moved(sample, next(model.parameters()).device)
        found = _saved(_folder(args, state)) if state.global_step else None
        given = {"steps": state.max_steps, "seed": self._seed, "state": found, **self._settings}
        self.sparse = SparseOptimizer(model, optimizer, sample, **given)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert self.sparse is not None
        self.sparse.prepare()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        assert self.sparse is not None
        self.sparse.complete()

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.sparse is not None and state.is_world_process_zero:
            content = self.sparse.state_dict()
            write_with(_folder(args, state) / FILE, lambda file: torch.save(content, file))


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(
            f"Training resumes from {folder.name}, but {path} is not there: the checkpoint was written without this "
            f"callback, or into another output_dir. Resume from one that has its masks."
        )
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _first(loader: Any) -> Any:
    """The first item of the training set as a batch of one; no random numbers are drawn for it."""
    try:
        return loader.collate_fn([loader.dataset[0]])
    except (TypeError, KeyError, NotImplementedError):
        raise RecipeError(
            "The training set gives no item by its number, so no sample could be taken from it. Give "
            "SparsifyCallback a sample: a dictionary of the model's inputs for one item."
        ) from None


def _moved(sample: Any, device: torch.device) -> Any:
    if isinstance(sample, torch.Tensor):
        return sample.to(device)
    return {key: _moved(value, device) for key, value in sample.items()} if isinstance(sample, Mapping) else sample
