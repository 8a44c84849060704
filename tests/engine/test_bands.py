"""Operations that take turns, a band of rows each, against running one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.engine.bands import Moving, visits
from sparsify.engine.compile import compile_program
from sparsify.engine.stage import Sweep
from sparsify.engine.tuning import Tuning
from tests.engine.cases import check, feeds, levels
from tests.engine.test_runtime import network


@pytest.mark.parametrize("level", levels())
def test_a_network_in_bands(level):
    narrow, case = Tuning(band_bytes=2000, panel=3), network(33)
    check(case, level, tuning=narrow)
    arrays = feeds(case, np.random.default_rng(0))
    in_bands, whole = (compile_program(case, 2, tuning=t).run(arrays) for t in (narrow, Tuning(panel=3)))
    for one, other in zip(in_bands, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_larger_than_a_cache_is_cut_with_all_that_lies_between():
    row = np.stack([np.arange(8), np.arange(1, 9)], axis=1)
    sizes = [10, 40, 10, 40, 10]
    steps = [Moving(Sweep(2, row, (row,)), (number,), number + 1, size) for number, size in enumerate(sizes)]
    taken = [visit.step for visit in visits([5, *steps], 10)]
    assert taken == [0, 1, *[2, 3, 4] * 4, 5]
    assert [visit.step for visit in visits([5, *steps], 20)] == [0, 1, 2, 3, 4, 5]


@st.composite
def runs(draw):
    """Steps whose rows depend on windows of rows of earlier results, in few buffers that are used again."""
    height = draw(st.integers(1, 9))
    steps, held = [], [0]  # buffer 0 is there from the start
    for _ in range(draw(st.integers(2, 6))):
        reads, needs = draw(st.lists(st.sampled_from(held), min_size=1, max_size=2)), []
        for _ in reads:
            above, below = draw(st.integers(0, 2)), draw(st.integers(1, 3))
            row = np.arange(height)
            needs.append(np.stack([row - above, row + below], axis=1).clip(0, height))
        writes = draw(st.integers(0, 3))
        if writes in reads:  # in place, so no row but its own
            needs = [np.stack([np.arange(height), np.arange(1, height + 1)], axis=1) if b == writes else n
                     for b, n in zip(reads, needs, strict=True)]  # fmt: skip
        held = [*{*held, writes}]
        width, panel = draw(st.integers(1, 4)), draw(st.integers(1, 9))
        start = np.arange(0, height * width, panel)
        panels = np.stack([start, np.minimum(start + panel, height * width) + width - 1], axis=1) // width
        sweep = Sweep(draw(st.integers(1, 3)), panels, tuple(needs))
        steps.append(Moving(sweep, tuple(reads), writes, draw(st.sampled_from([1, 100]))))
    return height, steps


@settings(max_examples=200, deadline=None)
@given(runs(), st.sampled_from([7, 15, 33, 1000]))
def test_every_row_is_read_as_the_step_before_left_it(case, band):
    height, steps = case
    meant = []  # of each step: who wrote what it reads
    holder = dict.fromkeys(range(4), -1)
    for number, step in enumerate(steps):
        meant.append([holder[buffer] for buffer in step.reads])
        holder[step.writes] = number
    rows = np.full((4, height), -1)  # who wrote each row of each buffer
    done = [0] * len(steps)
    for visit in visits(steps, band):
        step = steps[visit.step]
        each = step.sweep.tiles
        assert visit.first == done[visit.step] * each
        assert visit.tiles > 0
        first, last = done[visit.step], done[visit.step] + visit.tiles // each
        done[visit.step] = last
        begin, end = step.sweep.panels[first, 0], step.sweep.panels[last - 1, 1]
        for buffer, writer, needs in zip(step.reads, meant[visit.step], step.sweep.reads, strict=True):
            seen = rows[buffer, needs[begin:end, 0].min() : needs[begin:end, 1].max()]
            # In place, the row in work is partly its own already.
            allowed = {writer, visit.step} if buffer == step.writes else {writer}
            assert set(seen.tolist()) <= allowed
        rows[step.writes, begin:end] = visit.step
    assert done == [len(step.sweep.panels) for step in steps]
    np.testing.assert_array_equal(rows, [[holder[buffer]] * height for buffer in range(4)])
