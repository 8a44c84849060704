"""Many processes that train one network, as torchrun starts them.

Each rank computes the gradient of its rows of the global batch; the mean over ranks is the gradient that one
process would have. It is summed in the order of the ranks, so that N processes compute bit for bit what one
process computes that accumulates over N parts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch import distributed as dist

from sparsify.data import Share
from sparsify.errors import DistributedError
from sparsify.randomness import generator
from sparsify.topology.digest import mask_digest
from sparsify.topology.masks import Masks

TIMEOUT = timedelta(minutes=10)  # that a rank may be busy alone, writing a checkpoint; a dead one is noticed at once


@dataclass(frozen=True)
class World:
    """The processes of a run. One process alone is a world of size 1, in which nothing is exchanged."""

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this rank is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This rank's share of the global batch."""
        return self.rank, self.size

    def seed(self, seed: int, step: int) -> None:
        """Give each rank random numbers of its own for this step's dropout; one process keeps its stream."""
        if self.size > 1:
            torch.manual_seed(generator(seed, f"forward of rank {self.rank}", step).initial_seed())

    def reduce_gradients(self, model: nn.Module, loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """Replace the gradients by their mean over the ranks.

        Returns the mean of the loss, and whether any rank was asked to stop, so that all stop at one step.
        Raises DistributedError where another rank is gone.
        """
        if self.size == 1:
            return loss, stop
        parameters = list(model.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        extra = torch.stack([loss.detach().float(), loss.new_tensor(float(stop), dtype=torch.float32)])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), extra])
        total = self._ordered_sum(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, mean in zip(gradients, (total[:-2] / self.size).split(sizes), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return total[-2] / self.size, bool(total[-1] > 0)

    def check_masks(self, masks: Masks, step: int) -> None:
        """Compare the masks' digests across ranks. Raises DistributedError, on every rank, where they differ."""
        if self.size == 1:
            return
        own = {name: mask_digest({name: mask.cpu().numpy()}) for name, mask in masks.items()}
        everyone: list[dict[str, str]] = [{} for _ in range(self.size)]
        with _explained():
            dist.all_gather_object(everyone, own)
        different = [
            f"{name} on rank {rank}"
            for rank, digests in enumerate(everyone)
            for name in own
            if digests.get(name) != everyone[0].get(name)
        ]
        if different:
            raise DistributedError(
                f"After step {step} the ranks hold different masks: {', '.join(different)} is not what rank 0 has. "
                f"They no longer train one network. Ranks that compute differently are the likely cause: other "
                f"hardware, other versions, or damaged memory. Resume from the last checkpoint on ranks that are alike."
            )

    def barrier(self) -> None:
        """Wait for all ranks. Raises DistributedError where another rank is gone."""
        if self.size > 1:
            with _explained():
                dist.barrier(device_ids=None if self.device.index is None else [self.device.index])

    def _ordered_sum(self, flat: Tensor) -> Tensor:
        """The sum over ranks in the order of the ranks, [n]: each rank sums up its slice of everybody's."""
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % self.size))
        received = torch.empty_like(padded)
        with _explained():
            dist.all_to_all_single(received, padded)  # [size, n / size], row r is rank r's
            total = received.view(self.size, -1)[0].clone()
            for part in received.view(self.size, -1)[1:]:
                total += part
            dist.all_gather(list(padded.view(self.size, -1)), total)
        return padded[: len(flat)]


def speaks() -> bool:
    """Whether this process is the one of its run that talks to the user; known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment describes; a world of one where torchrun did not start us.

    device: where this process computes; "cuda" becomes the GPU of the local rank. gloo connects CPUs, NCCL GPUs.
    Raises DistributedError where the ranks cannot meet.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    with _explained():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        world = World(dist.get_rank(), size, device)
        yield world
        # Nobody leaves while others wait for an answer. It has to be a barrier: gloo's thread may let go of a
        # collective's tensors as late as when Python is shutting down, and then that ends the process.
        world.barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Failures of the exchange as one error."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise DistributedError(
            f"Another process of this run ended or cannot be reached ({reason}). Its own message says why, unless "
            f"it was killed; killed for lack of memory is the usual case. Start torchrun again with --resume and "
            f"the same --out: the run continues from its last checkpoint, on as many processes as you like."
        ) from error
