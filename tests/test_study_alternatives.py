"""The claim on what else would do, on outcomes made by hand."""

import math
from typing import Any

import pytest

import study_outcomes as made
import tolerance
from batchnorm.study import pictures
from batchnorm.study.claims import alternatives
from batchnorm.study.claims.alternatives import ALTERNATIVES, CLAIM
from batchnorm.study.course import Course
from batchnorm.study.design import Settings
from batchnorm.study.findings import Finding
from batchnorm.study.training import Outcome, Spec

NAMES = [name for name, _ in ALTERNATIVES.values()]


def norm_of(spec: Spec) -> str:
    return "none" if (spec.placement, spec.norm) == ("none", "batch") else spec.norm


def steps(best: float = 0.32, **by_norm: float) -> made.Answer:
    """Return the answer that lets each side arrive at its step at its best rate, and later at others; 33 by default.

    A side that never arrives comes nearest at its best rate.
    """

    def how(spec: Spec) -> Outcome:
        at_best, apart = {"batch": 10, **by_norm}.get(norm_of(spec), 33), abs(math.log10(spec.rate / best))
        if math.isinf(at_best):
            return made.jump(spec, math.inf, low=0.6 - 0.01 * apart)
        later = made.MARKS.index(at_best) + round(2 * apart)
        return made.jump(spec, made.MARKS[min(later, len(made.MARKS) - 2)])

    return how


def measured(how: made.Answer, **of: Any) -> Finding:
    study = made.answered(how, CLAIM, **of)
    finding = CLAIM.measure(study).scheduled(study.settings.schedule, check=False)
    pictures.inline(CLAIM.picture(finding), CLAIM.id, CLAIM.title, CLAIM.caption)
    return finding


def test_each_alternative_is_its_steps_by_those_of_batch_normalization() -> None:
    finding = measured(steps(layer=22, group=33, tanh=10, init=5))
    marks = {
        "layer normalization": 2.2,
        "group normalization": 3.3,
        "dynamic tanh": 1.0,
        "initialization from data": 0.5,
    }
    deciding = {e.part: e for e in finding.effects if e.decides}
    assert list(deciding) == NAMES == list(marks)
    for part, ratio in marks.items():
        assert deciding[part].least == deciding[part].most == pytest.approx((ratio,) * 6, **tolerance.FEW_ROUNDINGS)
    assert list(finding.parts().values()) == ["holds", "holds", "undecided", "does not hold"]
    assert finding.verdict() == "mixed"
    assert finding.numbers["rates"] == dict.fromkeys(("batch", *ALTERNATIVES), 0.32)
    assert finding.summary == (
        "The fastest alternative, initialization from data, takes 0.5× the steps of batch normalization."
    )


def test_an_alternative_that_never_arrives_is_a_bound() -> None:
    finding = measured(steps(layer=math.inf, group=math.inf, tanh=math.inf, init=math.inf))
    assert finding.verdict() == "holds"
    assert finding.effects[0].least == (12.0,) * 6
    assert finding.effects[0].headline() == "at least 12×"
    assert "No seed arrives with layer normalization" in finding.notes[0].replace(", no", ", No")


def test_where_nothing_arrives_nothing_is_said_to_be_faster() -> None:
    finding = measured(steps(batch=math.inf, layer=math.inf, group=math.inf, tanh=math.inf, init=math.inf))
    assert finding.verdict() == "undecided"
    assert finding.summary.startswith("Neither batch normalization nor an alternative reaches the goal")


def test_where_batch_normalization_never_arrives_alternatives_are_faster() -> None:
    finding = measured(steps(batch=math.inf))
    assert finding.verdict() == "does not hold"


def test_the_score_stands_beside_and_counts_for_batch_normalization() -> None:
    def how(spec: Spec) -> Outcome:
        return made.jump(spec, 10 if spec.rate == 0.32 else 97, 0.95 if norm_of(spec) == "layer" else 0.97)

    gains = [e for e in measured(how).effects if not e.decides]
    assert [round(e.least[0], 6) for e in gains] == [2.0, 0.0, 0.0, 0.0]
    assert {e.unit for e in gains} == {" points"}


def test_every_side_starts_with_the_same_rates_and_goes_on_alike() -> None:
    assert alternatives.rates(made.study_of()) == [0.032, 0.32, 3.2]
    sides = alternatives.tunings(made.answered(steps(best=32.0), CLAIM))
    assert {norm: side.rate for norm, side in sides.items()} == dict.fromkeys(("batch", *ALTERNATIVES), 32.0)
    assert {tuple(side.by_rate) for side in sides.values()} == {(0.032, 0.32, 3.2, 32.0, 320.0)}


@pytest.mark.parametrize("best", [0.0032, 0.32, 32.0])
def test_no_run_is_trained_in_two_companies(best: float) -> None:
    """The lab made by hand refuses units that overlap; quick or not, wherever the best rate is."""
    for settings in (made.QUICK, Settings()):
        study = made.study_of(settings, how=steps(best))
        course = Course(study, [CLAIM], None)
        course.run()
        assert set(course.findings) == {"alternatives"}
