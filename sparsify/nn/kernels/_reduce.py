"""Sums over lanes of many vectors at once, three instructions for each."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir


def transposed_sums(builder: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """A vector whose lane i is the sum of the lanes of vectors[i]. As many vectors as lanes, a power of two.

    Vectors are folded in pairs: one shuffle takes half of the lanes of both, another the other half, and their sum
    holds the pair. Halves are whole quarters of a register as long as they can be, then stay within quarters, so that
    each shuffle is one cheap instruction. Which vector is whose partner decides where its sum ends up.
    """
    lanes = len(vectors)
    plan = _plan([[i] * lanes for i in range(lanes)])
    where = plan[-1][0]
    source = [0] * lanes  # lane l of the result is the sum of the l-th vector if the where[l]-th input is that
    for lane, number in enumerate(where):
        source[number] = lane
    state = [vectors[source[i]] for i in range(lanes)]
    owners = [[i] * lanes for i in range(lanes)]
    while len(state) > 1:
        half = len(state) // 2
        masks = [_masks(owners[i], owners[i + half]) for i in range(half)]
        state = [
            builder.fadd(*(_shuffle(builder, state[i], state[i + half], m) for m in masks[i])) for i in range(half)
        ]
        owners = [_owners(owners[i], owners[i + half], masks[i][0]) for i in range(half)]
    return state[0]


def _plan(owners: list[list[int]]) -> list[list[list[int]]]:
    """Whose partial sums each vector's lanes hold, level by level."""
    levels = [owners]
    while len(owners) > 1:
        half = len(owners) // 2
        pairs = [(owners[i], owners[i + half]) for i in range(half)]
        owners = [_owners(a, b, _masks(a, b)[0]) for a, b in pairs]
        levels.append(owners)
    return levels


def _owners(a: list[int], b: list[int], mask: list[int]) -> list[int]:
    return [(a + b)[lane] for lane in mask]


def _masks(a: list[int], b: list[int]) -> tuple[list[int], list[int]]:
    """Lanes of the two shuffles that fold a pair: of each owner's lanes the first half, and the second."""
    lanes, run = len(a), _run(a)
    low: list[int] = []
    high: list[int] = []
    quarter = 4 if run <= 4 else lanes
    for start in range(0, lanes, quarter):
        for offset in (0, lanes):
            for first in range(start, start + quarter, run):
                low += range(offset + first, offset + first + run // 2)
                high += range(offset + first + run // 2, offset + first + run)
    return low, high


def _run(owners: list[int]) -> int:
    """Neighbouring lanes that belong to one owner."""
    return next((i for i, owner in enumerate(owners) if owner != owners[0]), len(owners))


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, mask: list[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(mask)), mask))
