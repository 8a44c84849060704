"""Random numbers that depend on a seed, a purpose and a step alone, so that a resumed run draws the same."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for one purpose ("masks", "growth", "augmentation") at one step of one run."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
