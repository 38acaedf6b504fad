"""Intervals and verdicts: fixed thresholds, plain answers."""

import math

import numpy as np
import pytest

from batchnorm.study.findings import VAST, Effect, Finding, of_ratios, ratios

ABOVE = (4.0, 5.0, 6.0, 5.5, 4.5)


@pytest.mark.parametrize(
    ("samples", "side", "verdict"),
    [
        (ABOVE, "above", "holds"),
        (ABOVE, "below", "does not hold"),
        ((0.1, 0.2, 0.3), "above", "does not hold"),
        ((0.1, 0.2, 0.3), "below", "holds"),
        ((0.1, 5.0, 0.2, 6.0, 5.5), "above", "undecided"),
        ((1.0, 1.0, 1.0), "above", "undecided"),
        ((9.0, math.nan, 9.0, math.nan), "above", "undecided"),
        ((9.0, 9.0, 9.0), "above", "holds"),
    ],
)
def test_a_verdict_needs_the_whole_interval(samples: tuple[float, ...], side: str, verdict: str) -> None:
    assert Effect("e", samples, 1.0, side).verdict() == verdict


def test_the_interval_is_a_bootstrap_of_the_median_and_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = Effect("e", tuple(rng.normal(3.0, 1.0, 25)), 0.0).interval()
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 1.0


def test_the_same_samples_give_the_same_interval() -> None:
    assert Effect("e", ABOVE, 1.0).as_json() == Effect("e", ABOVE, 1.0).as_json()


def test_deciding_effects_are_combined_and_others_are_not() -> None:
    yes, no = Effect("y", ABOVE, 1.0), Effect("n", ABOVE, 9.0)
    maybe, beside = Effect("m", (0.0, 2.0, 3.0), 1.0), Effect("b", ABOVE, 9.0, decides=False)
    assert Finding((yes, beside)).verdict() == "holds"
    assert Finding((yes, maybe)).verdict() == "undecided"
    assert Finding((yes, maybe, no)).verdict() == "does not hold"
    assert Finding((beside,)).verdict() == "undecided"
    assert Finding(skipped="why").verdict() == "not measured"


def test_runs_that_never_arrive_are_bounds() -> None:
    inf = math.inf
    found = ratios([100.0, inf, 20.0, inf], [10.0, 10.0, inf, inf], 1000.0)
    assert found.samples[:3] == (10.0, 100.0, 0.02)
    assert found.least[:3] == (10.0, 100.0, 0.0)
    assert found.most[:3] == (10.0, VAST, 0.02)
    assert all(math.isnan(values[3]) for values in found[:3])
    assert found.bounded.startswith("3 of 4 seeds did not arrive within 1000 steps")
    assert ratios([5.0], [5.0], 10.0) == ((1.0,), (1.0,), (1.0,), "")
    assert ratios([0.0], [0.0], 10.0).samples == (1.0,)


def test_a_bound_decides_only_in_the_direction_it_bounds() -> None:
    never, late, early = [math.inf] * 5, [800.0] * 5, [10.0] * 5
    assert of_ratios("", ratios(never, early, 1000.0), 1.5).verdict() == "holds"
    assert of_ratios("", ratios(never, late, 1000.0), 1.5).verdict() == "undecided"  # 1.25 or more
    assert of_ratios("", ratios(early, never, 1000.0), 1.5).verdict() == "does not hold"
    assert of_ratios("", ratios(never, late, 1000.0), 1.5, "below").verdict() == "undecided"
    assert of_ratios("", ratios(late, never, 1000.0), 0.5, "above").verdict() == "undecided"  # 0.8 or less
    assert of_ratios("", ratios(never, never, 1000.0), 1.5).verdict() == "undecided"
