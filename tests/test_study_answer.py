"""The answer and the setting to use, on outcomes made by hand: no sentence says what the runs do not."""

import math
from dataclasses import replace
from typing import Any

import pytest

import study_outcomes as made
from batchnorm.study import answer
from batchnorm.study.claims import learning_rate, score, speed
from batchnorm.study.data import Dataset
from batchnorm.study.design import Study
from batchnorm.study.findings import Effect, Finding
from batchnorm.study.training import Outcome, Problem, Spec


def findings(study: Study, *claims: Any) -> dict[str, Finding]:
    return {c.CLAIM.id: c.CLAIM.measure(study) for c in claims}


def sentences(how: made.Answer, *claims: Any, seconds: Effect | None = None, **of: Any) -> list[str]:
    study = made.answered(how, *(c.CLAIM for c in claims), **of)
    return answer.sentences(study, findings(study, *claims), answer.recommend(study), seconds)


def chosen(how: made.Answer, *claims: Any, **of: Any) -> answer.Candidate | None:
    return answer.recommend(made.answered(how, *((c.CLAIM for c in claims) if claims else (speed.CLAIM,)), **of))


SPEED = {"holds": made.never, "does not hold": made.always, "undecided": made.odd}
SCORE = {"holds": made.always, "does not hold": made.never, "undecided": made.odd}
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
    how = made.compared(SPEED[faster], SCORE[better])
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
        "holds": "its best test accuracy within 120 steps is 0.99 with and 0.97 without.",
        "does not hold": "its best test accuracy within 120 steps is 0.97 with and 0.99 without.",
        "undecided": "its best test accuracy within 120 steps is 0.98 with and without.",
    }
    assert first.endswith(ends[better])


def test_without_the_claim_on_scores_steps_alone_decide() -> None:
    first, second, _ = sentences(made.compared(made.never, made.always), speed)
    assert first.startswith("Yes: ")
    assert first.endswith("to accuracy 0.941.")
    assert second == (
        "In the sigmoid network of the paper by Ioffe and Szegedy, batch normalization takes 4.1 times fewer steps "
        "(4.1 to 4.1) to accuracy 0.941."
    )


@pytest.mark.parametrize(
    ("without", "with_it", "said"),
    [
        (
            made.always, made.never,
            "Yes: {where}, batch normalization takes at least 12 times fewer steps (12 or more) to accuracy {goal}, as "
            "no run without it arrives within 120 steps.",
        ),
        (
            lambda seed: seed < 5, made.never,
            "Yes: {where}, batch normalization takes at least 12 times fewer steps (4.1 or more) to accuracy {goal}, "
            "as 1 of 6 runs without it arrives within 120 steps.",
        ),
        (
            made.never, made.always,
            "No: {where}, batch normalization takes at least 2.93 times more steps (2.93 or more) to accuracy {goal}, "
            "as no run with it arrives within 120 steps.",
        ),
        (
            made.always, made.always,
            "Undecided: {where}, the steps to accuracy {goal} with and without batch normalization cannot be compared: "
            "no run without it arrives within 120 steps, no run with it arrives within 120 steps.",
        ),
        (
            made.odd, lambda seed: not made.odd(seed),
            "Undecided: {where}, the steps to accuracy {goal} with and without batch normalization cannot be compared: "
            "3 of 6 runs without it arrive within 120 steps, 3 of 6 runs with it arrive within 120 steps.",
        ),
    ],
)  # fmt: skip
def test_sides_that_never_arrive_are_counted(without: Any, with_it: Any, said: str) -> None:
    where = "on two classes, in a ReLU network with 3 hidden layers of 100 units"
    assert sentences(made.late_in("relu", without, with_it), speed)[0] == said.format(where=where, goal="0.941")


def test_the_papers_network_is_told_of_with_its_own_bounds() -> None:
    _, second, _ = sentences(made.late_in("sigmoid", made.always, made.never), speed, learning_rate)
    assert second == (
        "In the sigmoid network of the paper by Ioffe and Szegedy, batch normalization takes at least 25 times fewer "
        "steps (25 or more) to accuracy 0.941, as no run without it arrives within 250 steps, and the range of "
        "learning rates that work is wider by 1 decade."
    )


def test_where_nothing_is_learned_no_number_is_made_up() -> None:
    said = sentences(lambda s: made.jump(s, made.NEVER), speed, score, learning_rate)
    assert said[0] == (
        "Undecided: on two classes, in a ReLU network with 3 hidden layers of 100 units, no run learns to predict "
        "better than guessing, which scores accuracy 0.5; its best test accuracy within 120 steps is 0.5 with and "
        "without."
    )
    assert "no run learns" in said[1]
    assert said[2] == "No setting is recommended: none of those that were run learned enough, or none was compared."
    assert not [word for word in ("nan", "inf", "∞") if word in " ".join(said)]


def test_seconds_stand_beside_steps() -> None:
    study = made.answered(made.compared(made.never, made.always), speed.CLAIM)
    said = findings(study, speed)
    (seconds, *_) = speed.timed(said["speed"], {"none": 1.0, "before": 8.2})
    first = answer.sentences(study, said, None, seconds)[0]
    assert first.endswith("to accuracy 0.941, and 2 times more time on this machine.")


def test_an_obstacle_is_named() -> None:
    def how(spec: Spec) -> Outcome:
        if spec.placement == "before" and spec.activation == "relu":
            return made.jump(spec, made.MARKS[10 - max(0, min(9, round(math.log10(spec.rate)) + 4))])
        return made.compared(made.never, made.always)(spec)

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
    how = made.compared(made.never, made.always)
    first = sentences(
        lambda s: how(replace(s, activation="relu")) if s.activation != "sigmoid" else how(s),
        speed, settings=made.Quick(**settings),
    )[0]  # fmt: skip
    assert where in first


def test_a_model_of_ones_own_is_the_only_network() -> None:
    settings = made.Quick(model="module:model")
    first, second, last = sentences(made.compared(made.never, made.always), speed, learning_rate, settings=settings)
    assert first.startswith("Yes: on two classes, in your model, batch normalization takes 4.1 times fewer steps")
    assert "Ioffe" not in second
    assert second.startswith("In your model, the range")
    assert "use your model with batch normalization before each activation" in last


def test_without_speed_the_answer_counts() -> None:
    study = made.answered(made.compared(made.never, made.always), score.CLAIM)
    first, second, _ = answer.sentences(study, findings(study, score), None)
    assert first == "On two classes, 1 claim was measured; 1 of them holds."
    assert second.startswith(
        "In the ReLU network, the best test accuracy within 120 steps is 0.99 with batch normalization"
    )


def test_values_are_described_by_their_own_score() -> None:
    data = made.table()
    y = data.x[:, 0].astype("float32")
    problem = Problem({"main": Dataset("prices", "", data.x, y, "regression", metric="r2")})
    how = made.compared(made.never, made.always)
    first = sentences(how, speed, score, problem=problem)[0]
    assert "to R² 0.891" in first
    assert "its best test R² within 120 steps is 0.99 with and 0.97 without." in first


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
    assert text.startswith("3 verdicts were asked for, of which 2 could be decided.")
    assert "at most 0.15 false verdicts would be expected" in text


def test_where_nothing_is_learned_no_setting_is_recommended_though_a_lucky_run_arrives() -> None:
    """One seed reaches what another network's runs reach in none: its goal is known, and the median goal is not."""

    def how(spec: Spec) -> Outcome:
        return made.jump(spec, 10 if spec.seed == 0 else made.NEVER)

    said = sentences(how, speed, score)
    assert "in 5 of 6 seeds no run learns to predict better than guessing" in said[0]
    assert said[2].startswith("No setting is recommended")


def test_a_model_that_scores_clearly_higher_than_the_networks_is_named() -> None:
    study = made.answered(made.compared(made.never, made.always), speed.CLAIM)
    said, chosen = findings(study, speed), answer.recommend(study)
    assert chosen is not None

    def last(**models: float) -> str:
        return answer.sentences(study, said, chosen, references=models)[2]

    assert study.reach() == 0.99
    assert last(forest=1.0, linear=0.7).endswith(
        " A forest scores higher: accuracy 1, where these networks reach 0.99."
    )
    assert last(forest=0.999) == last()
