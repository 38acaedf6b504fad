"""Which setting a study recommends, on outcomes made by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

import study_outcomes as made
from batchnorm.study import answer
from batchnorm.study.claims import placement, speed
from batchnorm.study.training import Outcome, Spec


def chosen(how: made.Answer, *claims: Any) -> answer.Candidate | None:
    return answer.recommend(made.answered(how, *((c.CLAIM for c in claims) if claims else (speed.CLAIM,))))


def sentence(how: made.Answer) -> str:
    study = made.answered(how, speed.CLAIM)
    return answer.sentences(study, {"speed": speed.measure(study)}, answer.recommend(study))[2]


def test_the_setting_is_the_fastest_of_those_that_are_as_good() -> None:
    setting = chosen(made.compared(made.never, made.always)).setting
    assert (setting.placement, setting.norm, setting.activation, setting.rate) == ("before", "batch", "relu", 0.32)
    assert (setting.optimizer, setting.batch_size, setting.metric) == ("sgd", 60, "accuracy")
    assert setting.steps == answer.MARGIN * made.EARLY
    last = sentence(made.compared(made.never, made.always))
    assert last == (
        "Of all settings that were run, use ReLU units with batch normalization before each activation, standardised "
        "inputs, sgd with a learning rate of 0.32 and batches of 60: of those that score best on validation "
        "rows it is the fastest, and every seed arrives, after 10 steps (median)."
    )


def test_without_batch_normalization_is_a_candidate() -> None:
    best = chosen(made.compared(made.always, made.never))
    assert (best.setting.placement, best.setting.rate) == ("none", 0.32)
    assert "ReLU units with no normalization" in sentence(made.compared(made.always, made.never))


def test_a_setting_in_which_every_seed_arrives_comes_before_a_faster_one() -> None:
    """With it after the activation step 3, but for one seed of six; without it step 5 in all of them."""

    def how(spec: Spec) -> Outcome:
        if spec.activation == "sigmoid" or spec.rate != 0.32:
            return made.jump(spec, 97)
        if spec.placement == "after":
            return made.jump(spec, 3, high=0.8 if spec.seed == 4 else made.HIGH)
        return made.jump(spec, 5 if spec.placement == "none" else 22)

    best = chosen(how, speed, placement)
    assert (best.setting.placement, best.late, best.steps) == ("none", 0, 5.0)


def test_where_no_setting_is_sure_the_count_is_told() -> None:
    """In the first seed no run ends at the goal, which the paper's network touches."""

    def how(spec: Spec) -> Outcome:
        if spec.activation == "relu" and spec.seed:
            return made.compared(made.never, made.always)(spec)
        run = made.jump(spec, 1, high=0.7)
        touch = [made.HIGH if at == 5 else score for at, score in zip(run.steps, run.test, strict=True)]
        return replace(run, validation=touch, test=touch)

    last = sentence(how)
    assert last.endswith("5 of 6 seeds arrive, after 10 steps (median).")


def test_touching_the_goal_wins_nothing() -> None:
    """A rate that touches the goal at step 5 and ends far below it, in every seed."""

    def how(spec: Spec) -> Outcome:
        run = made.compared(made.never, made.always)(spec)
        if spec.placement == "none" and spec.rate == 0.032:
            touch = [made.HIGH if 5 <= at <= 22 else 0.6 for at in run.steps]
            return replace(run, validation=touch, test=touch)
        return run

    assert chosen(how).setting.placement == "before"


def test_the_setting_is_chosen_on_validation_rows() -> None:
    """Without it first to arrive on test rows, at step 1, and late on validation rows; as good in the end."""

    def how(spec: Spec) -> Outcome:
        if spec.placement != "none" or spec.rate != made.MIDDLE[spec.activation]:
            return made.compared(made.never, made.always)(spec)
        return replace(made.jump(spec, made.LATE), test=made.jump(spec, 1).test)

    assert chosen(how).setting.placement == "before"


@pytest.mark.parametrize(("lower", "placed"), [(0.005, "before"), (0.04, "none")])
def test_a_much_better_score_comes_before_speed(lower: float, placed: str) -> None:
    """Without it later, but to a higher score: within 2 % of the way of 0.49, or well beyond."""

    def how(spec: Spec) -> Outcome:
        if spec.rate != made.MIDDLE[spec.activation]:
            return made.jump(spec, 97, high=0.9)
        late = spec.placement == "none"
        return made.jump(spec, made.LATE if late else made.EARLY, high=made.HIGH - (0.0 if late else lower))

    assert chosen(how).setting.placement == placed


def test_the_papers_network_can_be_the_setting() -> None:
    best = chosen(made.late_in("relu", made.always, made.always))
    assert (best.setting.activation, best.setting.rate) == ("sigmoid", 1.0)


def test_runs_that_were_made_longer_are_candidates() -> None:
    """In no network does a run arrive within its steps; four times as many do it."""

    def how(spec: Spec) -> Outcome:
        needed = 400 if spec.activation == "relu" else 900
        slope = 1 + abs(math.log10(spec.rate / made.MIDDLE[spec.activation])) / 3
        steps = made.jump(spec, 0).steps
        scores = [made.LOW + 0.49 * min(1.0, at / needed / slope) for at in steps]
        reach = [
            made.HIGH if at == 33 and spec.placement == "before" else score
            for at, score in zip(steps, scores, strict=True)
        ]
        return Outcome(steps, scores if spec.steps > 250 else reach, scores if spec.steps > 250 else reach)

    best = chosen(how)
    assert best is not None
    assert best.setting.steps > 120
    assert best.late == 0


def test_runs_that_diverge_are_no_candidates() -> None:
    def how(spec: Spec) -> Outcome:
        run = made.compared(made.never, made.always)(spec)
        return made.diverged(run, after=33) if spec.placement == "before" else run

    assert chosen(how).setting.placement == "none"
