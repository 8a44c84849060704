"""What is said of ratios, held against the numbers that it must be right about."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from sparsify.bench.statistics import CONFIDENCE, interval, quantiles, sign, speed_up, times, verdict

TRIALS = 2000


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([1.5, 1.6, 1.4] * 2, "sparsity makes it faster (1.50x, between 1.40x and 1.60x)"),
        ([0.5, 0.6, 0.4] * 2, "sparsity makes it slower (0.50x, between 0.40x and 0.60x)"),
        ([0.9, 1.0, 1.4] * 2, "no sparse speed-up found (1.00x, between 0.90x and 1.40x)"),
        ([1.01, 1.015, 1.02] * 2, "no sparse speed-up found (1.01x, between 1.01x and 1.02x)"),
        ([1.5, 1.6, 1.4, 1.5, 1.5], "too few rounds to say (1.50x, between 1.40x and 1.60x)"),
    ],
)
def test_verdicts(ratios, words):
    assert verdict(interval(ratios)) == words


def test_speed_up_is_taken_round_by_round():
    """A machine that halves its speed in the second round moves both sides and not the ratio."""
    found = speed_up(slow=[[4.0, 4.0], [8.0]], fast=[[2.0, 2.0, 9.0], [4.0]])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("count", range(1, 26))
def test_bounds_are_the_narrowest_that_are_sure_enough(count):
    """The confidence by summing over all outcomes of `count` coins: how many rounds fall below the true median."""
    values = list(range(count))
    found = interval(values)

    def chance(rank):
        inside = sum(math.comb(count, below) for below in range(count + 1) if rank <= below <= count - rank)
        return inside / 2**count

    rank = values.index(found.low) + 1
    assert values.index(found.high) == count - rank and found.median == statistics.median(values)
    assert found.confidence == pytest.approx(chance(rank))
    assert (found.confidence >= CONFIDENCE) == (count >= 6)
    assert rank == 1 or chance(rank) >= CONFIDENCE
    assert chance(rank + 1) < CONFIDENCE


@pytest.mark.parametrize("noise", ["normal", "heavy-tailed"])
def test_two_runs_of_the_same_thing_are_the_same_nineteen_times_in_twenty(noise):
    """A/A on synthetic rounds: both sides drawn from one distribution, the machine drifting under both."""
    draw = random.Random(0)
    jitter = {
        "normal": lambda: draw.gauss(0, 0.02),
        "heavy-tailed": lambda: abs(draw.gauss(0, 0.01)) + (draw.random() < 0.1) * draw.random(),
    }[noise]
    wrong = outside = 0
    for _ in range(TRIALS):
        drift = [1 + 0.5 * draw.random() for _ in range(9)]
        sides = [[[pace * math.exp(jitter())] for pace in drift] for _ in range(2)]
        ratio = speed_up(*sides)
        wrong += sign(ratio) != 0
        outside += not ratio.low <= 1 <= ratio.high
    # 3.9 % of the intervals of nine rounds miss the truth; a binomial count stays within four deviations
    expected = TRIALS * (1 - interval(range(9)).confidence)
    assert abs(outside - expected) < 4 * math.sqrt(expected)
    assert wrong <= outside


def test_a_difference_of_a_tenth_is_found():
    draw = random.Random(1)
    found = 0
    for _ in range(200):
        slow, fast = ([[level * math.exp(draw.gauss(0, 0.02))] for _ in range(9)] for level in (1.1, 1.0))
        found += sign(speed_up(slow, fast)) == 1
    assert found > 180


def test_quantiles_are_values_that_occurred():
    values = [float(v) for v in range(1, 101)]
    assert quantiles(values[::-1], (0, 0.01, 0.5, 0.9, 0.99, 1)) == [1, 1, 50, 90, 99, 100]
    assert quantiles([7.0], (0, 0.5, 1)) == [7, 7, 7]


def test_a_ratio_is_read_to_two_digits():
    assert [times(ratio) for ratio in (12.345, 1.0, 0.1, 0.04567, 0.000361)] == [
        "12.35x",
        "1.00x",
        "0.10x",
        "0.046x",
        "0.00036x",
    ]
