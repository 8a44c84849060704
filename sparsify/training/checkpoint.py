"""Checkpoints: everything that a run needs to continue bit for bit, in one file.

The file is torch's zip format with tensors and plain values only, read with `weights_only=True`. It holds
the masks themselves, since a connection's weight can be exactly 0.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import CheckpointError
from sparsify.files import write_with
from sparsify.topology.explored import Explored
from sparsify.training.compute import fitted, positions_of
from sparsify.training.precision import LossScale
from sparsify.training.step import TrainState

VERSION = 2


@dataclass
class Window:
    """What has been gathered since the last line of the metrics."""

    loss: torch.Tensor  # sum over the steps, on the device, so that no step waits for it
    steps: int = 0
    grown: int = 0  # connections grown up to the last line
    dead: dict[str, torch.Tensor] = field(default_factory=dict)  # [out] bool, neurons whose death was told


def save_checkpoint(path: Path, state: TrainState, window: Window, metrics_bytes: int) -> None:
    """Replace the checkpoint at `path`. metrics_bytes: length of the metrics file that belongs to it."""
    content = {
        "version": VERSION,
        "model": state.model.state_dict(),
        "sparse": sorted(state.masks.positions),  # weights that are values with positions beside them
        "optimizer": state.optimizer.state_dict(),
        **sparse_state(state),
        "loss_scale": vars(state.loss_scale) if state.loss_scale is not None else None,
        "window": vars(window),
        "random": _random_state(),
        "metrics_bytes": metrics_bytes,
    }
    buffer = io.BytesIO()  # torch.save would turn a full disk into an error of its own
    torch.save(content, buffer)
    write_with(path, lambda file: file.write(buffer.getbuffer()))


def sparse_state(state: TrainState) -> dict[str, Any]:
    """What there is to remember besides the model and the optimizer, as tensors and plain values."""
    return {
        "masks": dict(state.masks.tensors),
        "explored": dict(state.explored.found) if state.explored is not None else None,
        "progress": {
            "step": state.step,
            "update_pending": state.update_pending,
            "updates": state.updates,
            "grown": state.grown,
            "churn": state.churn,
            "flops": state.flops,
            "memory": dict(state.memory),
            "momentum": dict(state.momentum),
            "gathered": dict(state.gathered),
            "average": dict(state.average),
        },
    }


def with_sparse_state(state: TrainState, content: Mapping[str, Any]) -> TrainState:
    """The state with what `sparse_state` gave."""
    explored = content["explored"]
    return replace(
        state,
        masks=replace(state.masks, tensors=content["masks"]),
        explored=Explored.of(state.masks, explored) if explored is not None else None,
        **content["progress"],
    )


def load_checkpoint(path: Path, content: dict[str, Any], state: TrainState) -> tuple[TrainState, Window, int]:
    """Fill `state`'s model and optimizer from a checkpoint; returns what `save_checkpoint` was given.

    content: of the checkpoint at `path`. torch's random state is set too. Layers may be masked in one and sparse in
    the other. Raises CheckpointError where the checkpoint does not fit.
    """
    content = fitted(content, state.model, state.masks, state.optimizer)
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit this recipe's model or optimizer: {error}") from None
    _set_random_state(content["random"])
    scale = content["loss_scale"]
    state = replace(state, masks=replace(state.masks, positions=positions_of(state.model)))
    state = with_sparse_state(state, content)
    state = replace(state, loss_scale=LossScale(**scale) if scale is not None else None)
    return state, Window(**content["window"]), content["metrics_bytes"]


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, checked byte by byte. Raises CheckpointError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CheckpointError(_damaged(path, f"{broken} fails its checksum"))
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        for key in ("random",):  # torch takes these on the CPU only
            content[key] = {name: value.cpu() for name, value in content[key].items()}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(_damaged(path, str(error).split("\n")[0])) from None
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is of version {content.get('version')} and this program reads version {VERSION}. "
            f"Resume it with the release that wrote it, or start anew with another --out."
        )
    return content


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _damaged(path: Path, found: str) -> str:
    return (
        f"The checkpoint {path} is damaged ({found}): it was cut short or changed on disk. It cannot be resumed. "
        f"Restore it from a copy, or train again with another --out."
    )
