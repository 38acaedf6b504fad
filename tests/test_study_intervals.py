"""Intervals of a median: what they miss is counted, not simulated, over every way the samples can fall."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm.study import intervals
from batchnorm.study.findings import Effect

SCHEDULES = [(6,), (10,), (12,), (6, 12), (6, 8), (6, 12, 15), (6, 7, 8, 9, 10, 11, 12), (6, 12, 20)]
ALLOWED = Fraction(1, 20)


def counts_above(schedule: Sequence[int]) -> np.ndarray:
    """How many samples lie above the median at each look, (2^n, looks): every pattern of signs is equally likely."""
    seeds = schedule[-1]
    patterns = (np.arange(2**seeds)[:, None] >> np.arange(seeds)) & 1
    return patterns.cumsum(1)[:, [look - 1 for look in schedule]]


def missed(schedule: Sequence[int], ranks: Sequence[int]) -> Fraction:
    """The exact probability that the interval of some look leaves the median out: all its samples on one side."""
    above, looks = counts_above(schedule), np.asarray(schedule)
    out = ((above < ranks) | (above > looks - ranks)).any(1)
    return Fraction(int(out.sum()), len(out))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_level_is_that_of_counting_every_pattern_of_signs(schedule: tuple[int, ...]) -> None:
    chosen = intervals.ranks(schedule)
    assert list(chosen) == list(schedule)
    lost = missed(schedule, list(chosen.values()))
    assert lost <= ALLOWED
    assert intervals.level(schedule) == float(1 - lost)  # sums of powers of two: exact


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_each_look_takes_the_narrowest_interval_that_is_allowed(schedule: tuple[int, ...]) -> None:
    ranks = list(intervals.ranks(schedule).values())
    for i, (look, rank) in enumerate(zip(schedule, ranks, strict=True)):
        narrower = [*ranks[:i], rank + 1]
        assert 2 * (rank + 1) > look or missed(schedule[: i + 1], narrower) > ALLOWED


def test_ranks_and_levels_of_the_usual_schedules() -> None:
    assert intervals.ranks((6,)) == {6: 1}
    assert intervals.ranks((10,)) == {10: 2}
    assert intervals.ranks((6, 12)) == {6: 1, 12: 2}
    assert intervals.level((6,)) == 1 - 2 / 2**6
    assert intervals.level((10,)) == 1 - 2 * (1 + 10) / 2**10
    # after six samples that lie on both sides: one sample alone on its side, which the first six hold
    assert intervals.level((6, 12)) == 1 - 2 / 2**6 - 2 * 6 / 2**12


@pytest.mark.parametrize("seeds", range(1, intervals.FEWEST))
def test_fewer_than_six_seeds_give_no_interval(seeds: int) -> None:
    assert intervals.ranks((seeds,)) == {seeds: 0}
    assert intervals.interval([1.0] * seeds, [1.0] * seeds, (seeds,)) == (-math.inf, math.inf)
    assert intervals.interval([1.0] * seeds, [1.0] * seeds, (6, 12)) == (-math.inf, math.inf)
    assert Effect.of("", [9.0] * seeds, 1.0).verdict() == "undecided"


def test_looks() -> None:
    assert [intervals.looks(seeds) for seeds in (1, 6, 7, 12, 20, 100)] == [
        (1,), (6,), (6, 7), (6, 12), (6, 12, 20), (6, 12, 20, 40, 80, 100),
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", [(6,), (6, 12), (10,)], ids=str)
def test_verdicts_at_the_threshold_are_false_as_rarely_as_the_level_says(schedule: tuple[int, ...]) -> None:
    """Every pattern of samples about a threshold that is the true median, looked at as a study does."""
    false = {"holds": 0, "does not hold": 0}
    for signs in itertools.product((-1.0, 1.0), repeat=schedule[-1]):
        samples = [1.5 + sign * (i + 1) for i, sign in enumerate(signs)]
        for look in schedule:
            verdict = Effect.of("", samples[:look], 1.5, schedule=schedule).verdict()
            if verdict != "undecided":
                false[verdict] += 1
                break
    share = Fraction(sum(false.values()), 2 ** schedule[-1])
    assert false["holds"] == false["does not hold"] > 0
    assert share == 1 - Fraction(intervals.level(schedule))
    assert share <= ALLOWED


DISTRIBUTIONS: dict[str, dict[float, Fraction]] = {
    "three equal steps": {-1: Fraction(1, 3), 0: Fraction(1, 3), 1: Fraction(1, 3)},
    "skewed": {0: Fraction(3, 10), 1: Fraction(3, 10), 100: Fraction(4, 10)},
    "mostly one value": {0: Fraction(1, 10), 1: Fraction(8, 10), 2: Fraction(1, 10)},
    "never as often as not": {0.5: Fraction(1, 4), 1: Fraction(1, 4), math.inf: Fraction(1, 2)},
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_tied_samples_are_covered_at_least_as_often(name: str) -> None:
    """All 3^6 sequences of six tied samples, each with its exact probability."""
    distribution = DISTRIBUTIONS[name]
    values = sorted(distribution)
    cumulated = np.cumsum([float(distribution[v]) for v in values])
    median = values[int(np.argmax(cumulated >= 0.5))]
    lost = Fraction(0)
    for samples in itertools.product(values, repeat=6):
        low, high = intervals.interval(samples, samples, (6,))
        if not low <= median <= high:
            lost += math.prod((distribution[s] for s in samples), start=Fraction(1))
    assert lost <= ALLOWED


def test_the_interval_is_made_of_the_samples_that_the_ranks_name() -> None:
    samples = [3.0, 1.0, 2.0, 6.0, 5.0, 4.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0]
    assert intervals.interval(samples[:6], samples[:6], (6, 12)) == (1.0, 6.0)
    assert intervals.interval(samples, samples, (6, 12)) == (2.0, 11.0)
    assert intervals.interval(samples[:10], samples[:10], (10,)) == (2.0, 11.0)
    assert intervals.interval(samples[:8], samples[:8], (6, 12)) == (1.0, 12.0)  # as looks at 6 and 8


pairs = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 50), st.one_of(st.floats(0, 50), st.just(math.inf))),
    min_size=6, max_size=14,
)  # fmt: skip


@given(pairs)
def test_what_is_known_less_well_is_never_bounded_more_narrowly(drawn: list[tuple[float, float, float]]) -> None:
    samples = [value for value, _, _ in drawn]
    least, most = [value - below for value, below, _ in drawn], [value + above for value, _, above in drawn]
    low, high = intervals.interval(samples, samples, (6, 12))
    wide_low, wide_high = intervals.interval(least, most, (6, 12))
    assert wide_low <= low <= high <= wide_high


@given(st.permutations(range(12)))
def test_the_order_of_the_samples_is_of_no_account(order: list[int]) -> None:
    least, most = [float(i) for i in range(12)], [float(i + i % 3) for i in range(12)]
    shuffled = intervals.interval([least[i] for i in order], [most[i] for i in order], (6, 12))
    assert shuffled == intervals.interval(least, most, (6, 12))
