"""Update schedules."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.topology.schedules import DECAYS, UpdateSchedule


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 60))
def test_growth_counts_the_last_batches_before_each_update(delta_t, batches, t_end):
    schedule = UpdateSchedule(delta_t=delta_t, alpha=0.3, t_end=t_end, growth_batches=batches)
    updates = [step for step in range(100) if schedule.is_update_step(step)]
    wanted = {step for update in updates for step in range(update, max(0, update - min(batches, delta_t)), -1)}
    assert {step for step in range(100) if schedule.counts_for_growth(step)} == wanted


def test_updates_every_delta_t_until_t_end_inclusive():
    schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=300)
    assert [step for step in range(500) if schedule.is_update_step(step)] == [100, 200, 300]


@pytest.mark.parametrize(
    ("decay", "at_quarter"),
    [
        ("cosine", 0.15 * (1 + math.cos(math.pi / 4))),
        ("constant", 0.3),
        ("linear", 0.225),
        ("inverse_power", 0.3 * 0.75**3),
    ],
)
def test_drop_fraction(decay, at_quarter):
    schedule = UpdateSchedule(delta_t=10, alpha=0.3, t_end=400, decay=decay)
    assert schedule.drop_fraction(100) == pytest.approx(at_quarter)
    assert schedule.drop_fraction(401) == 0


@pytest.mark.parametrize("decay", sorted(DECAYS))
def test_every_decay_begins_at_alpha_and_never_rises(decay):
    schedule = UpdateSchedule(delta_t=1, alpha=0.5, t_end=50, decay=decay)
    fractions = [schedule.drop_fraction(step) for step in range(51)]
    assert fractions[0] == pytest.approx(0.5)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(fractions))
