"""Effects, verdicts and their words: what is known of a sample, and no more than that, decides."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnorm.study.findings import Effect, Finding, Verdict, agreed, known, number, ratios, times
from batchnorm.study.usable import range_effect, range_sentence, wider

INF, NAN = math.inf, math.nan
ABOVE = (4.0, 5.0, 6.0, 5.5, 4.5, 7.0)
BELOW = (0.1, 0.2, 0.3, 0.15, 0.25, 0.35)
SIX = 6


@pytest.mark.parametrize(
    ("samples", "side", "verdict"),
    [
        (ABOVE, "above", "holds"),
        (ABOVE, "below", "does not hold"),
        (BELOW, "above", "does not hold"),
        (BELOW, "below", "holds"),
        ((*ABOVE[:5], 0.9), "above", "undecided"),
        ((*ABOVE[:5], 1.0), "above", "undecided"),  # on the threshold is not beyond it
        ((1.0,) * SIX, "below", "undecided"),
        ((*ABOVE[:5], NAN), "above", "undecided"),
        ((*ABOVE, *ABOVE[:5], 0.9), "above", "holds"),  # of twelve, one may lie apart
        ((*ABOVE, *ABOVE[:5], NAN), "above", "holds"),
        ((*ABOVE, *ABOVE[:4], 0.9, NAN), "above", "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(samples: tuple[float, ...], side: Any, verdict: str) -> None:
    effect = Effect.of("e", samples, 1.0, side, schedule=(6, 12))
    assert effect.verdict() == verdict
    assert effect.as_json()["verdict"] == verdict


def test_an_obstacle_leaves_everything_open_and_no_seed_is_added_for_it() -> None:
    effect = Effect.of("e", ABOVE, 1.0, obstacle="the best learning rate is the last one")
    assert effect.verdict() == "undecided"
    assert not Finding((effect,)).open
    assert Finding((effect, Effect.of("f", (*ABOVE[:5], 0.5), 1.0))).open


@pytest.mark.parametrize(
    ("without", "with_it", "sample"),
    [
        (100.0, 10.0, (10.0, 10.0)),
        (10.0, 100.0, (0.1, 0.1)),
        (INF, 6.0, (250 / 6, INF)),
        (6.0, INF, (0.0, 6 / 400)),
        (INF, INF, (0.0, INF)),
        (0.0, 4.0, (0.25, 0.25)),  # arriving at the start counts as arriving at step 1
        (0.0, 0.0, (1.0, 1.0)),
        (INF, 0.0, (250.0, INF)),
    ],
)
def test_ratios_of_steps_are_bounds_where_a_run_never_arrives(
    without: float, with_it: float, sample: tuple[float, float]
) -> None:
    effect = ratios("steps", [without], [with_it], budgets=(250, 400), threshold=1.5)
    assert (effect.least[0], effect.most[0]) == sample
    assert effect.unit == "×"


@pytest.mark.parametrize(
    ("without", "with_it", "side", "verdict"),
    [
        (INF, 6.0, "above", "holds"),
        (INF, 6.0, "below", "does not hold"),
        (INF, 200.0, "above", "undecided"),  # at least 1.25: that it is more than 1.5 is not known
        (INF, 200.0, "below", "undecided"),
        (6.0, INF, "above", "does not hold"),
        (6.0, INF, "below", "holds"),
        (240.0, INF, "above", "does not hold"),  # 0.96 or less
        (INF, INF, "above", "undecided"),
        (INF, INF, "below", "undecided"),
    ],
)
def test_a_bound_decides_only_in_the_direction_it_bounds(
    without: float, with_it: float, side: Any, verdict: str
) -> None:
    effect = ratios("", [without] * SIX, [with_it] * SIX, budgets=(250, 250), threshold=1.5, side=side)
    assert effect.verdict() == verdict


def test_a_bound_on_the_other_side_decides_nothing() -> None:
    late = ratios("", [240.0] * SIX, [INF] * SIX, budgets=(250, 250), threshold=0.5)
    assert late.verdict() == "undecided"  # 0.96 or less: it may be 0.1, and it may be 0.9
    assert late.headline() == "at most 0.96×"


def test_seeds_in_which_neither_side_arrives_count_neither_for_nor_against() -> None:
    without, with_it = [60.0] * 11 + [INF], [10.0] * 11 + [INF]
    effect = ratios("", without, with_it, budgets=(250, 250), threshold=1.5, schedule=(6, 12))
    assert (effect.verdict(), effect.headline(), effect.bound) == ("holds", "6×", "exact")
    half = ratios("", [60.0] * 6 + [INF] * 6, [10.0] * 6 + [INF] * 6, budgets=(250, 250), threshold=1.5)
    assert (half.verdict(), half.headline(), half.bound) == ("undecided", "unknown", "unknown")


@pytest.mark.parametrize(
    ("least", "most", "unit", "headline", "text"),
    [
        ((4.0, 5.0, 6.0, 5.5, 4.5, 7.0), None, "×", "5.25×", "5.25× (4 to 7)"),
        ((42.0, 30.0, 50.0, 42.0, 42.0, 44.0), (INF,) * 6, "×", "at least 42×", "at least 42× (30 or more)"),
        ((0.0,) * 6, (0.5, 0.4, 0.5, 0.6, 0.5, 0.2), "×", "at most 0.5×", "at most 0.5× (0.6 or less)"),
        ((0.0,) * 6, (INF,) * 6, "×", "unknown", "unknown"),
        ((2.0,) * 6, (3.0,) * 6, "×", "between 2 and 3×", "between 2 and 3× (2 to 3)"),
        ((1.0,) * 6, None, " decades", "1 decade", "1 decade (1 to 1)"),
        ((0.5,) * 6, None, " decades", "0.5 decades", "0.5 decades (0.5 to 0.5)"),
        ((1.0,) * 6, (INF,) * 6, " decades", "at least 1 decade", "at least 1 decade (1 or more)"),
        ((-INF,) * 6, (1.0,) * 6, " points", "at most 1 point", "at most 1 point (1 or less)"),
        ((-1.5,) * 6, None, " points", "−1.5 points", "−1.5 points (−1.5 to −1.5)"),
        ((-INF,) * 6, (INF,) * 6, "", "unknown", "unknown"),
        ((2.0, 3.0, 4.0), None, "×", "3×", "3×"),  # three samples have no interval
        ((), None, "×", "unknown", "unknown"),
    ],
)
def test_effects_in_words(least: Any, most: Any, unit: str, headline: str, text: str) -> None:
    effect = Effect("e", least, least if most is None else most, 1.5, unit=unit)
    assert effect.headline() == headline
    assert effect.text() == text


def test_headline_and_interval_are_of_the_same_samples() -> None:
    """Half of the seeds arrive: the median rests on a bound, and says so."""
    effect = ratios("", [60.0] * 3 + [INF] * 3, [10.0] * 6, budgets=(250, 250), threshold=1.5)
    assert effect.median == (6.0, INF)
    assert effect.headline() == "at least 6×"
    assert effect.interval() == (6.0, INF)
    json = effect.as_json()
    assert (json["value"], json["bound"], json["low"], json["high"]) == (6.0, "at least", 6.0, INF)
    assert json["samples"] == [[6.0, 6.0]] * 3 + [[25.0, INF]] * 3


@pytest.mark.parametrize(
    ("without", "with_it", "headline"),
    [
        ([60.0] * 3 + [70.0] * 3, [10.0] * 6, "6.5×"),  # halfway between the middle two
        ([60.0, 60.0, 60.0, 70.0, INF, INF], [10.0] * 6, "6.5×"),  # which are known
        ([60.0, 60.0, INF, INF, INF, INF], [10.0] * 6, "at least 25×"),
        ([INF] * 3 + [60.0] * 3, [10.0] * 3 + [INF] * 3, "unknown"),  # half for, half against
        ([INF] * 4 + [60.0] * 2, [10.0] * 4 + [INF] * 2, "at least 25×"),
        ([60.0] * 4 + [INF] * 2, [INF] * 4 + [10.0] * 2, "at most 0.24×"),
        ([60.0] * 3 + [INF] * 2, [10.0] * 5, "6×"),
        ([60.0] * 2 + [INF] * 3, [10.0] * 5, "at least 25×"),
    ],
)
def test_the_median_of_samples_that_are_bounds(without: Any, with_it: Any, headline: str) -> None:
    assert ratios("", without, with_it, budgets=(250, 250), threshold=1.5).headline() == headline


def test_what_is_unknown_is_told_as_such() -> None:
    json = Effect.of("e", [NAN] * SIX, 0.0, unit=" points").as_json()
    assert math.isnan(json["value"])
    assert (json["bound"], json["low"], json["high"], json["range"]) == ("unknown", None, INF, "")
    ratio = Effect.of("e", [NAN] * SIX, 1.5, unit="×")
    assert set(ratio.least) == {0.0}  # no ratio of steps is below zero
    assert ratio.as_json()["low"] is None


WORDS = ("fewer steps", "more steps", "as many steps")


@pytest.mark.parametrize(
    ("least", "most", "words", "around"),
    [
        (4.0, 4.0, "4 times fewer steps", " (4 to 4)"),
        (0.25, 0.25, "4 times more steps", " (4 to 4)"),
        (1.0, 1.0, "as many steps", " (1 to 1)"),
        (1.003, 1.003, "as many steps", " (1 to 1)"),
        (42.0, INF, "at least 42 times fewer steps", " (42 or more)"),
        (0.5, INF, "at most 2 times more steps", " (2 or less)"),
        (0.0, 0.5, "at least 2 times more steps", " (2 or more)"),
        (0.0, 3.0, "at most 3 times fewer steps", " (3 or less)"),
        (1.0, INF, "at most as many steps", " (1 or more)"),
        (0.0, 1.0, "at least as many steps", " (1 or less)"),
        (2.0, 3.0, "between 2 and 3 times fewer steps", " (2 to 3)"),
        (0.25, 0.5, "between 2 and 4 times more steps", " (2 to 4)"),
    ],
)
def test_ratios_in_words_are_turned_over_with_their_intervals(
    least: float, most: float, words: str, around: str
) -> None:
    effect = Effect("e", (least,) * SIX, (most,) * SIX, 1.5, unit="×")
    assert times(effect, *WORDS) == words
    assert times(effect, *WORDS, around=True) == words + around


@given(st.lists(st.floats(0.01, 100.0), min_size=6, max_size=12))
def test_the_turned_over_number_is_one_by_the_median(samples: list[float]) -> None:
    effect = Effect.of("e", samples, 1.5, unit="×")
    value = effect.value()
    words = times(effect, *WORDS)
    expected = number(1 / value if value < 1 else value)
    assert words == "as many steps" if expected == "1" else words.startswith(f"{expected} times ")


def test_parts_have_their_own_verdicts_and_disagree_as_mixed() -> None:
    yes, no = Effect.of("y", ABOVE, 1.0, part="ReLU network"), Effect.of("n", ABOVE, 9.0, part="sigmoid network")
    maybe = Effect.of("m", (*ABOVE[:5], 0.5), 1.0, part="sigmoid network")
    beside = Effect.of("b", ABOVE, 9.0, part="ReLU network", decides=False)
    assert Finding((yes, no, beside)).parts() == {"ReLU network": "holds", "sigmoid network": "does not hold"}
    assert Finding((yes, no, beside)).verdict() == "mixed"
    assert Finding((yes, beside)).verdict() == "holds"
    assert Finding((no,)).verdict() == "does not hold"
    assert Finding((yes, maybe)).verdict() == "mixed"
    assert Finding((yes, replace(no, part=yes.part))).parts() == {"ReLU network": "mixed"}
    assert Finding((beside,)).verdict() == "undecided"
    assert Finding((yes,), skipped="why").verdict() == "not measured"
    assert not Finding((beside, yes)).open
    assert Finding((yes, maybe)).open


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["holds", "holds", "holds"], "holds"),
        (["does not hold"], "does not hold"),
        (["holds", "does not hold", "undecided"], "mixed"),
        (["holds", "mixed"], "mixed"),
        (["does not hold", "undecided"], "undecided"),
        ([], "undecided"),
    ],
)
def test_verdicts_together(verdicts: list[Verdict], together: str) -> None:
    assert agreed(verdicts) == together


def test_checks_pass_and_fail() -> None:
    yes, no = Effect.of("y", ABOVE, 1.0), Effect.of("n", ABOVE, 9.0)
    for verdict, samples, side in (
        ("passes", ABOVE, "above"),
        ("passes", ABOVE[:2], "above"),  # so few that they make no interval
        ("fails", ABOVE, "below"),
        ("fails", (*ABOVE, *ABOVE, 0.5), "above"),  # a single one
        ("fails", (*ABOVE, NAN), "above"),
        ("fails", (0.1, 1.0), "below"),
        ("passes", (0.1, 0.9), "below"),
        ("undecided", (), "above"),
    ):
        assert Finding((Effect.of("e", samples, 1.0, side),)).scheduled((6, 12), check=True).verdict() == verdict
    apart = (replace(yes, part="a"), replace(no, part="b"))
    assert Finding(apart).scheduled((6,), check=True).verdict() == "fails"
    assert Finding(apart).scheduled((6,), check=False).verdict() == "mixed"


def test_the_looks_of_the_study_reach_the_intervals() -> None:
    twelve = Finding((Effect.of("e", (*ABOVE, *ABOVE), 4.0),))
    assert twelve.effects[0].interval() == (4.5, 6.0)  # looked at once, with twelve: rank 3
    assert twelve.scheduled((6, 12), check=False).effects[0].interval() == (4.0, 7.0)  # twice: rank 2
    assert twelve.scheduled((6, 12), check=False).verdict() == "undecided"


def test_a_run_that_has_diverged_counts_for_the_losing_side() -> None:
    assert (known(0.5, INF), known(NAN, INF), known(-INF, 0.0)) == (0.5, INF, 0.0)


def grid(*columns: str) -> dict[float, list[bool]]:
    """Points 0.1, 1, 10, … of a grid: for each seed, a character a point; + works."""
    return {10.0**i: [seed[i] == "+" for seed in columns] for i in range(len(columns[0]))}


@pytest.mark.parametrize(
    ("without", "with_it", "samples", "said"),
    [
        ("--+--", "-+++-", (2.0, 2.0), "is wider by 2 decades"),
        ("-+++-", "--+--", (-2.0, -2.0), "is narrower by 2 decades"),
        ("-++--", "--++-", (0.0, 0.0), "is as wide"),
        ("-++--", "--+++", (1.0, INF), "is wider by at least 1 decade"),
        ("--+++", "-++--", (-INF, -1.0), "is narrower by at least 1 decade"),
        ("-++--", "++---", (0.0, INF), "is at least as wide"),
        ("-+++-", "-++++", (1.0, INF), "is wider by at least 1 decade"),
        ("-+++-", "---++", (-1.0, INF), "is narrower by at most 1 decade"),
        ("-----", "---+-", (1.0, 1.0), "is wider by 1 decade"),
        ("-+-+-", "--+--", (-1.0, -1.0), "is narrower by 1 decade"),
    ],
)
def test_ranges_that_reach_the_end_of_the_grid_are_bounds(
    without: str, with_it: str, samples: tuple[float, float], said: str
) -> None:
    sides = {"none": grid(*[without] * 6), "before": grid(*[with_it] * 6)}
    effect = range_effect("range", sides, stride=1.0, threshold=0.5, part="ReLU network")
    assert (effect.least[0], effect.most[0]) == samples
    assert wider(effect) == said
    assert said in range_sentence(effect, "learning rates")


@pytest.mark.parametrize(
    ("without", "with_it", "why"),
    [
        ("-----", "-----", "nothing that was tried works on either side"),
        ("++++-", "-++++", "both reach the end of what was tried"),
    ],
)
def test_ranges_of_which_nothing_is_known_are_not_compared(without: str, with_it: str, why: str) -> None:
    sides = {"none": grid(*[without] * 6), "before": grid(*[with_it] * 6)}
    effect = range_effect("range", sides, stride=1.0, threshold=0.5, part="ReLU network")
    assert effect.verdict() == "undecided"
    assert (
        range_sentence(effect, "stds")
        == f"In the ReLU network, the ranges of stds that work cannot be compared: {why}."
    )
