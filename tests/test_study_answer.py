"""The answer and the setting to use, on outcomes made by hand: no sentence says what the runs do not."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import study_outcomes as made
from batchnorm.study import answer
from batchnorm.study.claims import learning_rate, placement, score, speed
from batchnorm.study.data import Dataset
from batchnorm.study.design import Study
from batchnorm.study.findings import Effect, Finding
from batchnorm.study.training import Outcome, Problem, Spec

MIDDLE = {"relu": 0.32, "sigmoid": 1.0, "own": 0.1}
LATE, EARLY = 41, 10


def findings(study: Study, *claims: Any) -> dict[str, Finding]:
    return {c.CLAIM.id: c.CLAIM.measure(study) for c in claims}


def sentences(how: made.Answer, *claims: Any, seconds: Effect | None = None, **of: Any) -> list[str]:
    study = made.answered(how, *(c.CLAIM for c in claims), **of)
    return answer.sentences(study, findings(study, *claims), answer.recommend(study), seconds)


def chosen(how: made.Answer, *claims: Any, **of: Any) -> answer.Candidate | None:
    return answer.recommend(made.answered(how, *((c.CLAIM for c in claims) if claims else (speed.CLAIM,)), **of))


def compared(turned: Callable[[int], bool], higher: Callable[[int], bool]) -> made.Answer:
    """Without it late and with it early, or turned round for some seeds; its score higher in some, else lower."""

    def how(spec: Spec) -> Outcome:
        if spec.rate != MIDDLE[spec.activation]:
            return made.jump(spec, 97, high=0.95)
        with_it = spec.placement != "none"
        better = made.HIGH if with_it == higher(spec.seed) else made.HIGH - 0.02
        return made.jump(spec, LATE if with_it == turned(spec.seed) else EARLY, high=better)

    return how


def always(_: int) -> bool:
    return True


def never(_: int) -> bool:
    return False


def odd(seed: int) -> bool:
    return seed % 2 == 1


SPEED = {"holds": never, "does not hold": always, "undecided": odd}
SCORE = {"holds": always, "does not hold": never, "undecided": odd}
WORDS = {
    ("holds", "holds"): "Yes",
    ("holds", "undecided"): "Yes",
    ("holds", "does not hold"): "Faster, but to a worse score",
    ("undecided", "holds"): "Yes, for the score",
    ("undecided", "undecided"): "Undecided",
    ("undecided", "does not hold"): "No",
    ("does not hold", "holds"): "Yes, but only for the score",
    ("does not hold", "undecided"): "No",
    ("does not hold", "does not hold"): "No",
}


@pytest.mark.parametrize(("verdicts", "word"), WORDS.items())
def test_the_first_word_follows_from_steps_and_score(verdicts: tuple[str, str], word: str) -> None:
    faster, better = verdicts
    how = compared(SPEED[faster], SCORE[better])
    study = made.answered(how, speed.CLAIM, score.CLAIM)
    said = findings(study, speed, score)
    assert (said["speed"].parts()["ReLU network"], said["score"].parts()["ReLU network"]) == verdicts
    first = answer.sentences(study, said, None)[0]
    assert first.startswith(f"{word}: on two classes, in a ReLU network with 3 hidden layers of 100 units, ")
    steps = {
        "holds": "4.1 times fewer steps (4.1 to 4.1)",
        "does not hold": "4.1 times more steps (4.1 to 4.1)",
        "undecided": "2.17 times fewer steps (0.244 to 4.1)",
    }
    assert f"batch normalization takes {steps[faster]} to accuracy 0.941" in first
    ends = {
        "holds": "its best test accuracy is 0.99 with and 0.97 without.",
        "does not hold": "its best test accuracy is 0.97 with and 0.99 without.",
        "undecided": "its best test accuracy is 0.98 with and without.",
    }
    assert first.endswith(ends[better])


def test_without_the_claim_on_scores_steps_alone_decide() -> None:
    first, second, _ = sentences(compared(never, always), speed)
    assert first.startswith("Yes: ")
    assert first.endswith("to accuracy 0.941.")
    assert second == (
        "In the sigmoid network of the paper by Ioffe and Szegedy, batch normalization takes 4.1 times fewer steps "
        "(4.1 to 4.1) to accuracy 0.941."
    )


def late_in(network: str, without: Callable[[int], bool], with_it: Callable[[int], bool]) -> made.Answer:
    """Runs of one network never arrive in some seeds; all others do."""

    def how(spec: Spec) -> Outcome:
        late = (with_it if spec.placement != "none" else without)(spec.seed)
        middle = spec.rate == MIDDLE[spec.activation]
        if spec.activation == network and (late or not middle):
            return made.jump(spec, 1, high=0.8 if middle else 0.7)
        return compared(never, always)(spec)

    return how


@pytest.mark.parametrize(
    ("without", "with_it", "said"),
    [
        (
            always, never,
            "Yes: {where}, batch normalization takes at least 12 times fewer steps (12 or more) to accuracy {goal}, as "
            "no run without it arrives within 120 steps.",
        ),
        (
            lambda seed: seed < 5, never,
            "Yes: {where}, batch normalization takes at least 12 times fewer steps (4.1 or more) to accuracy {goal}, "
            "as 1 of 6 runs without it arrives within 120 steps.",
        ),
        (
            never, always,
            "No: {where}, batch normalization takes at least 2.93 times more steps (2.93 or more) to accuracy {goal}, "
            "as no run with it arrives within 120 steps.",
        ),
        (
            always, always,
            "Undecided: {where}, the steps of batch normalization to accuracy {goal} are unknown: no run without it "
            "arrives within 120 steps, no run with it arrives within 120 steps.",
        ),
        (
            odd, lambda seed: not odd(seed),
            "Undecided: {where}, the steps of batch normalization to accuracy {goal} are unknown: 3 of 6 runs without "
            "it arrive within 120 steps, 3 of 6 runs with it arrive within 120 steps.",
        ),
    ],
)  # fmt: skip
def test_sides_that_never_arrive_are_counted(without: Any, with_it: Any, said: str) -> None:
    where = "on two classes, in a ReLU network with 3 hidden layers of 100 units"
    assert sentences(late_in("relu", without, with_it), speed)[0] == said.format(where=where, goal="0.941")


def test_the_papers_network_is_told_of_with_its_own_bounds() -> None:
    _, second, _ = sentences(late_in("sigmoid", always, never), speed, learning_rate)
    assert second == (
        "In the sigmoid network of the paper by Ioffe and Szegedy, batch normalization takes at least 25 times fewer "
        "steps (25 or more) to accuracy 0.941, as no run without it arrives within 250 steps, and the range of "
        "learning rates that work is wider by 1 decade."
    )


def test_where_nothing_is_learned_no_number_is_made_up() -> None:
    said = sentences(lambda s: made.jump(s, made.NEVER), speed, score, learning_rate)
    assert said[0] == (
        "Undecided: on two classes, in a ReLU network with 3 hidden layers of 100 units, no run learns to predict "
        "better than guessing, which scores accuracy 0.5; its best test accuracy is 0.5 with and without."
    )
    assert "no run learns" in said[1]
    assert said[2] == "No setting is recommended: none of those that were run learned enough, or none was compared."
    assert not [word for word in ("nan", "inf", "∞") if word in " ".join(said)]


def test_seconds_stand_beside_steps() -> None:
    study = made.answered(compared(never, always), speed.CLAIM)
    said = findings(study, speed)
    (seconds, *_) = speed.timed(said["speed"], {"none": 1.0, "before": 8.2})
    first = answer.sentences(study, said, None, seconds)[0]
    assert first.endswith("to accuracy 0.941, which is 2 times more time on this machine.")


def test_an_obstacle_is_named() -> None:
    def how(spec: Spec) -> Outcome:
        if spec.placement == "before" and spec.activation == "relu":
            return made.jump(spec, made.MARKS[10 - max(0, min(9, round(math.log10(spec.rate)) + 4))])
        return compared(never, always)(spec)

    first = sentences(how, speed)[0]
    assert first.startswith("Undecided: ")
    assert first.endswith(", but with it, the best learning rate, 3200, is the highest that was tried.")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"activation": "elu", "hidden": (32,)}, "in an ELU network with 1 hidden layer of 32 units, "),
        ({"activation": "gelu", "hidden": (64, 32)}, "in a GELU network with 2 hidden layers of 64 and 32 units, "),
    ],
)
def test_the_network_is_named(settings: dict[str, Any], where: str) -> None:
    how = compared(never, always)
    first = sentences(
        lambda s: how(replace(s, activation="relu")) if s.activation != "sigmoid" else how(s),
        speed, settings=made.Quick(**settings),
    )[0]  # fmt: skip
    assert where in first


def test_a_model_of_ones_own_is_the_only_network() -> None:
    settings = made.Quick(model="module:model")
    first, second, last = sentences(compared(never, always), speed, learning_rate, settings=settings)
    assert first.startswith("Yes: on two classes, in your model, batch normalization takes 4.1 times fewer steps")
    assert "Ioffe" not in second
    assert second.startswith("In your model, the range")
    assert "use your model with batch normalization before each activation" in last


def test_without_speed_the_answer_counts() -> None:
    study = made.answered(compared(never, always), score.CLAIM)
    first, second, _ = answer.sentences(study, findings(study, score), None)
    assert first == "On two classes, 1 claim was measured; 1 of them holds."
    assert second.startswith("In the ReLU network, the best test accuracy is 0.99 with batch normalization")


def test_the_setting_is_the_fastest_of_those_that_are_as_good() -> None:
    setting = chosen(compared(never, always)).setting
    assert (setting.placement, setting.norm, setting.activation, setting.rate) == ("before", "batch", "relu", 0.32)
    assert (setting.optimizer, setting.batch_size, setting.metric) == ("sgd", 60, "accuracy")
    assert setting.steps == answer.MARGIN * EARLY
    last = sentences(compared(never, always), speed)[2]
    assert last == (
        "Of all settings that were run, use ReLU units with batch normalization before each activation, standardised "
        "inputs, sgd with a learning rate of 0.32 and batches of 60: every seed arrives, after 10 steps (median)."
    )


def test_without_batch_normalization_is_a_candidate() -> None:
    best = chosen(compared(always, never))
    assert (best.setting.placement, best.setting.rate) == ("none", 0.32)
    assert "ReLU units with no normalization" in sentences(compared(always, never), speed)[2]


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
            return compared(never, always)(spec)
        run = made.jump(spec, 1, high=0.7)
        touch = [made.HIGH if at == 5 else score for at, score in zip(run.steps, run.test, strict=True)]
        return replace(run, validation=touch, test=touch)

    last = sentences(how, speed)[2]
    assert last.endswith("5 of 6 seeds arrive, after 10 steps (median).")


def test_touching_the_goal_wins_nothing() -> None:
    """A rate that touches the goal at step 5 and ends far below it, in every seed."""

    def how(spec: Spec) -> Outcome:
        run = compared(never, always)(spec)
        if spec.placement == "none" and spec.rate == 0.032:
            touch = [made.HIGH if 5 <= at <= 22 else 0.6 for at in run.steps]
            return replace(run, validation=touch, test=touch)
        return run

    assert chosen(how).setting.placement == "before"


def test_the_setting_is_chosen_on_validation_rows() -> None:
    def how(spec: Spec) -> Outcome:
        run = compared(never, always)(spec)
        return replace(run, test=made.jump(spec, 1).test) if spec.placement == "none" else run

    assert chosen(how).setting.placement == "before"


@pytest.mark.parametrize(("lower", "placed"), [(0.005, "before"), (0.04, "none")])
def test_a_much_better_score_comes_before_speed(lower: float, placed: str) -> None:
    """Without it later, but to a higher score: within 2 % of the way of 0.49, or well beyond."""

    def how(spec: Spec) -> Outcome:
        if spec.rate != MIDDLE[spec.activation]:
            return made.jump(spec, 97, high=0.9)
        late = spec.placement == "none"
        return made.jump(spec, LATE if late else EARLY, high=made.HIGH - (0.0 if late else lower))

    assert chosen(how).setting.placement == placed


def test_the_papers_network_can_be_the_setting() -> None:
    best = chosen(late_in("relu", always, always))
    assert (best.setting.activation, best.setting.rate) == ("sigmoid", 1.0)


def test_runs_that_were_made_longer_are_candidates() -> None:
    """In no network does a run arrive within its steps; four times as many do it."""

    def how(spec: Spec) -> Outcome:
        needed = 400 if spec.activation == "relu" else 900
        slope = 1 + abs(math.log10(spec.rate / MIDDLE[spec.activation])) / 3
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
        run = compared(never, always)(spec)
        return made.diverged(run, after=33) if spec.placement == "before" else run

    assert chosen(how).setting.placement == "none"


def test_values_are_described_by_their_own_score() -> None:
    data = made.table()
    y = data.x[:, 0].astype("float32")
    problem = Problem({"main": Dataset("prices", "", data.x, y, "regression", metric="r2")})
    how = compared(never, always)
    first = sentences(how, speed, score, problem=problem)[0]
    assert "to R² 0.891" in first
    assert "its best test R² is 0.99 with and 0.97 without." in first


def test_multiplicity_counts_parts_and_leaves_checks_out() -> None:
    yes = Effect.of("y", [2.0] * 6, 1.0, part="a")
    maybe = Effect.of("m", [0.5, 2.0] * 3, 1.0, part="b")
    text = answer.multiplicity(
        {
            "x": Finding((yes, maybe)),
            "c": Finding((yes,), check=True),
            "s": Finding(skipped="why"),
            "z": Finding((yes,)),
        }
    )
    assert text.startswith("3 verdicts were asked for and 2 were decided.")
    assert "0.15 false verdicts would be expected at the most" in text
