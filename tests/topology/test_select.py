"""Exact selection against a sort that anyone can check."""

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsify.topology import select
from sparsify.topology.select import drop_and_grow, largest, random_mask, random_positions

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=40)  # few values: many ties


def chosen_by_sorting(values: list[float], count: int) -> list[int]:
    """Indices of the largest values, lower index first among equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


@given(scores, st.integers(0, 40))
def test_largest_is_exact_and_prefers_lower_indices(values, count):
    count = min(count, len(values))
    mask = largest(torch.tensor(values, dtype=torch.float32), count)
    assert mask.nonzero().flatten().tolist() == sorted(chosen_by_sorting(values, count))


@given(st.data())
def test_drop_and_grow_follows_the_algorithm(data):
    size = data.draw(st.integers(1, 30))
    row = st.lists(st.integers(-3, 3), min_size=size, max_size=size)
    weights, gradients = data.draw(row), data.draw(row)
    active = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    count = data.draw(st.integers(0, sum(active)))

    magnitudes = [-abs(w) if on else -np.inf for w, on in zip(weights, active, strict=True)]
    dropped = set(chosen_by_sorting(magnitudes, count))
    kept = {i for i in range(size) if active[i] and i not in dropped}
    promise = [-np.inf if i in kept else abs(gradients[i]) for i in range(size)]
    expected = kept | set(chosen_by_sorting(promise, count))

    weight, gradient = torch.tensor(weights).float(), torch.tensor(gradients).float()
    new = drop_and_grow(torch.tensor(active), weight.abs(), gradient.abs(), count)
    assert set(new.nonzero().flatten().tolist()) == expected
    assert int(new.sum()) == sum(active)


def test_dropped_connections_may_come_back():
    mask = torch.tensor([True, True, False])
    new = drop_and_grow(mask, torch.tensor([1.0, 2.0, 0.0]), torch.tensor([9.0, 0.0, 1.0]), 1)
    assert new.tolist() == [True, True, False]  # 0 is dropped as the smallest and grown for its gradient


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 5))
def test_random_masks_have_exact_counts(size, count, seed):
    count = min(count, size)
    mask = random_mask((size,), count, torch.Generator().manual_seed(seed))
    assert int(mask.sum()) == count


def test_ties_beyond_the_precision_of_an_estimate():
    score = torch.zeros(100_000)
    assert largest(score, 33_333).nonzero().flatten().tolist() == list(range(33_333))


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 20), st.sampled_from([0, 1 << 20]))
def test_random_positions_are_as_many_as_wanted_and_ascend(size, share, seed, permuted):
    count, before = round(share * size), select._PERMUTED
    select._PERMUTED = permuted
    try:
        found, same = (random_positions(size, count, torch.Generator().manual_seed(seed)) for _ in range(2))
    finally:
        select._PERMUTED = before
    assert len(found) == count and bool((found.diff() > 0).all()) and torch.equal(found, same)
    assert not count or (int(found[0]) >= 0 and int(found[-1]) < size)


def test_random_positions_without_a_permutation_are_equally_likely(monkeypatch):
    """Each of the 10 sets of 2 out of 5 comes up about a tenth of the time: chi-square with 9 degrees of freedom."""
    monkeypatch.setattr(select, "_PERMUTED", 0)
    random, draws = torch.Generator().manual_seed(0), 4000
    for count in (2, 3):  # drawn, and drawn as what is absent
        counts = Counter(tuple(random_positions(5, count, random).tolist()) for _ in range(draws))
        assert sum((found - draws / 10) ** 2 / (draws / 10) for found in counts.values()) < 27.9  # 0.1 % are above
        assert len(counts) == 10
