"""Blocked offsets: positions of non-zeros as small integers that sums decode. numpy alone.

docs/format.md, section 2, is the specification.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_SIZE = 2**31 - 1  # elements of the dense tensor; positions are int32
BYTE_GROUPS = (4, 8, 16, 32, 64)  # non-zeros a group where offsets take a byte
WORD_GROUPS = (8, 64, 512)  # and where they take two
WORD = 65535


@dataclass(frozen=True, eq=False)
class Blocked:
    """Stored elements in S blocks of K groups of G; short groups repeat their last element."""

    order: np.ndarray  # [S K G] int64: which of the non-zeros each slot holds
    offsets: np.ndarray  # [S, K, G] uint8, or uint16 with K = 1
    groups: np.ndarray | None  # [S, K, 1] uint16
    blocks: np.ndarray  # [S, 1, 1] int32

    def nbytes(self, width: int) -> int:
        """Bytes with values of `width` bytes."""
        groups = 0 if self.groups is None else self.groups.nbytes
        return self.order.size * width + self.offsets.nbytes + groups + self.blocks.nbytes


def encode(positions: np.ndarray, width: int) -> Blocked:
    """The smallest form found. positions: ascending flat ones, [nnz > 0]; width: bytes a value."""
    span = (positions[-1] - positions[0] + 1) / len(positions)  # positions that a non-zero covers on average
    sizes = [size for size in BYTE_GROUPS if size * span < 300]
    candidates = [_two_levels(positions, size) for size in sizes[-3:]]
    if span > 30 or len(sizes) < len(BYTE_GROUPS):  # a byte reaches few non-zeros only
        candidates += [_one_level(positions, size) for size in WORD_GROUPS]
    return min(candidates, key=lambda blocked: blocked.nbytes(width))


def decode(blocked: Blocked) -> np.ndarray:
    """Positions of the slots, [S K G] int32, by the sums that a runtime computes."""
    groups = 0 if blocked.groups is None else blocked.groups.astype(np.int32)
    total: np.ndarray = blocked.blocks + groups + blocked.offsets.astype(np.int32)
    return total.reshape(-1)


def _two_levels(positions: np.ndarray, size: int) -> Blocked:
    starts, order = _group(positions, size, 255)
    firsts = positions[starts]  # [groups]
    count = _block_count(firsts)
    length = -(-len(starts) // count)  # groups a block
    count = -(-len(starts) // length)
    missing = count * length - len(starts)
    # Missing groups repeat the last element of all.
    order = np.concatenate([order, np.full((missing, size), len(positions) - 1)])
    firsts = np.concatenate([firsts, np.full(missing, positions[-1])]).reshape(count, length, 1)
    blocks = firsts[:, :1]
    # The last element can lie beyond the last block's reach only if its group does not begin with it.
    groups = np.minimum(firsts - blocks, WORD)
    offsets = positions[order].reshape(count, length, size) - blocks - groups
    return Blocked(order.reshape(-1), offsets.astype(np.uint8), groups.astype(np.uint16), blocks.astype(np.int32))


def _one_level(positions: np.ndarray, size: int) -> Blocked:
    starts, order = _group(positions, size, WORD)
    blocks = positions[starts].reshape(-1, 1, 1)
    offsets = positions[order].reshape(-1, 1, size) - blocks
    return Blocked(order.reshape(-1), offsets.astype(np.uint16), None, blocks.astype(np.int32))


def _group(positions: np.ndarray, size: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut into groups of at most `size` that span at most `reach`: first members [groups], members [groups, size]."""
    indices = np.arange(len(positions))
    behind = np.minimum(indices + size, np.searchsorted(positions, positions + reach, side="right"))
    follow, starts, at = behind.tolist(), [], 0
    while at < len(positions):
        starts.append(at)
        at = follow[at]
    first = np.array(starts)
    last = behind[first] - 1
    return first, np.minimum(first[:, None] + np.arange(size), last[:, None])


def _block_count(firsts: np.ndarray) -> int:
    """Fewest blocks of equally many groups of which each spans no more than 16 bits."""
    count = max(1, int(-(-(firsts[-1] - firsts[0] + 1) // (WORD + 1))))
    while count < len(firsts):
        length = -(-len(firsts) // count)
        ends = firsts[np.minimum(np.arange(length - 1, len(firsts) + length - 1, length), len(firsts) - 1)]
        if (ends - firsts[::length] <= WORD).all():
            return count
        count += max(1, count // 32)
    return len(firsts)
