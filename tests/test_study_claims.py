"""Claims measured on outcomes made by hand: what each must say is known beforehand."""

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure

import study_outcomes as made
import tolerance
from batchnorm.study.claims import batch_size, initialization, input_scaling, learning_rate, placement, score, speed
from batchnorm.study.data import Dataset
from batchnorm.study.design import Study
from batchnorm.study.findings import Effect, Finding
from batchnorm.study.training import Outcome, Problem, Spec

CORE = [speed, score, learning_rate, initialization, batch_size, placement, input_scaling]
RELU, SIGMOID = "ReLU network", "sigmoid network"
LATE, LATEST = 41, 188  # evaluated steps, like all below
SCALED = {"raw": 41, "minmax": 22, "standard": 10}


def base(spec: Spec) -> float:
    """Steps at the best rate: 41 without and 10 with it in the ReLU network, 188 and 10 in the paper's."""
    if spec.placement == "first":
        return 10
    if spec.steps == 60:  # half the usual: input-scaling
        return SCALED[spec.scaling]
    if spec.placement == "none":
        return LATEST if spec.activation == "sigmoid" else LATE
    return 10 if spec.placement == "before" else {"sigmoid": 5}.get(spec.activation, 22)


def four_times_faster(spec: Spec) -> float:
    """Without it one rate works, with it two or three; from small weights only with it."""
    middle = 1.0 if spec.activation == "sigmoid" else 0.32 if spec.steps != 60 else 0.01
    decades = round(math.log10(spec.rate / middle))
    with_it = spec.placement in ("before", "after")
    if spec.std is not None:
        return base(spec) if spec.std in ((0.01, 0.1, 1.0) if with_it else (0.1,)) else made.NEVER
    if decades == 0:
        return base(spec)
    usable = (-1, 1) if spec.activation == "sigmoid" else (-1,)
    return 2 * base(spec) if with_it and decades in usable else made.NEVER


def measured(claim: ModuleType, how: made.Answer, **of: Any) -> tuple[Finding, Study]:
    study = made.answered(how, claim.CLAIM, **of)
    return claim.CLAIM.measure(study).scheduled(study.settings.schedule, check=claim.CLAIM.check), study


def found(claim: ModuleType, arrival: made.Arrival, **of: Any) -> Finding:
    return measured(claim, made.arriving(arrival), **of)[0]


def effect(finding: Finding, part: str, *, decides: bool = True, name: str = "") -> Effect:
    (only,) = [e for e in finding.effects if e.part == part and e.decides == decides and name in e.name]
    return only


def samples(e: Effect) -> list[float]:
    assert e.least == e.most
    return list(e.least)


def test_speed_is_steps_without_by_steps_with() -> None:
    finding = found(speed, four_times_faster)
    assert samples(effect(finding, RELU)) == [LATE / 10] * 6
    assert samples(effect(finding, SIGMOID)) == [LATEST / 10] * 6
    assert finding.parts() == {RELU: "holds", SIGMOID: "holds"}
    assert finding.numbers["networks"]["relu"]["rates"] == {"none": 0.32, "before": 0.32}
    assert finding.numbers["networks"]["sigmoid"]["steps"] == {"none": [LATEST] * 6, "before": [10] * 6}
    assert finding.summary == (
        "In the ReLU network, batch normalization takes 4.1 times fewer steps to accuracy 0.941."
    )
    assert finding.notes[0] == (
        "In the ReLU network, every seed arrives without it (learning rate 0.32, 120 steps), every seed arrives with "
        "it (learning rate 0.32, 120 steps)."
    )


def test_seconds_are_steps_times_the_time_of_a_step() -> None:
    finding = found(speed, four_times_faster)
    timed = speed.timed(finding, {"none": 1.0, "before": 2.0})
    assert [samples(e) for e in timed] == [[LATE / 20] * 6] * 2
    assert all((e.part, e.threshold, e.decides) == (RELU, 1.0, False) for e in timed)
    assert [e.name for e in timed] == [
        "seconds to the goal, without ÷ with", "seconds to the score near the goal, without ÷ with"
    ]  # fmt: skip


def slower(spec: Spec) -> float:
    """The other way round: with it the steps of the side without, and without it those of the side with."""
    other = {"none": "before", "before": "none"}.get(spec.placement, spec.placement)
    return four_times_faster(replace(spec, placement=other))


def test_a_verdict_against_it_is_as_plain() -> None:
    finding = found(speed, slower)
    assert finding.parts() == {RELU: "does not hold", SIGMOID: "does not hold"}
    assert "batch normalization takes 4.1 times more steps to accuracy" in finding.summary


@pytest.mark.parametrize(
    ("without", "with_it", "headline", "verdict"),
    [
        (made.NEVER, 10, "at least 12×", "holds"),
        (made.NEVER, 97, "at least 1.24×", "undecided"),
        (10, made.NEVER, "at most 0.0833×", "does not hold"),
        (made.NEVER, made.NEVER, "unknown", "undecided"),
    ],
)
def test_runs_that_never_arrive_are_bounds_in_the_ratio(
    without: float, with_it: float, headline: str, verdict: str
) -> None:
    """In the ReLU network, whose runs have 120 steps; the sigmoid network reaches the goal."""

    def how(spec: Spec) -> Outcome:
        if spec.activation == "sigmoid":
            return made.jump(spec, four_times_faster(spec))
        step = {"none": without, "before": with_it}[spec.placement]
        usable = spec.rate == 0.32 and math.isfinite(step)
        best = 0.7 if spec.rate == 0.32 else 0.6
        return made.jump(spec, step if usable else 1, high=made.HIGH if usable else best)

    finding, _ = measured(speed, how)
    relu = effect(finding, RELU)
    assert (relu.headline(), relu.verdict()) == (headline, verdict)
    assert effect(finding, SIGMOID).verdict() == "holds"
    assert [e.headline() for e in speed.timed(finding, {"none": 1.0, "before": 1.0})][:1] == [headline]
    if headline == "unknown":
        assert finding.summary == "In the ReLU network, too few seeds arrive at accuracy 0.941 to compare steps."
        assert "no seed arrives without it" in finding.notes[0]
        assert "no seed arrives with it" in finding.notes[0]


def test_a_rate_at_the_edge_is_an_obstacle_on_either_side() -> None:
    def arrival(spec: Spec) -> float:
        if spec.placement == "before" and spec.activation == "relu":
            return made.MARKS[10 - max(0, min(9, round(math.log10(spec.rate)) + 4))]
        return four_times_faster(spec)

    finding = found(speed, arrival)
    assert effect(finding, RELU).obstacle == "with it, the best learning rate, 3200, is the highest that was tried"
    assert finding.parts() == {RELU: "undecided", SIGMOID: "holds"}
    assert effect(found(placement, arrival), RELU).obstacle.startswith("before it, the best learning rate")


def scores_of(gain: float) -> made.Answer:
    """Runs with it end higher by so much, in the ReLU network."""

    def how(spec: Spec) -> Outcome:
        better = spec.placement != "none" and spec.activation == "relu"
        best = spec.rate in (0.32, 1.0)
        return made.jump(spec, 10, high=0.8 + (gain if better else 0.0) - (0.0 if best else 0.2) + spec.seed / 1000)

    return how


@pytest.mark.parametrize(
    ("gain", "verdict", "headline"),
    [
        (0.05, "holds", "5 points"),
        (-0.05, "does not hold", "−5 points"),
        (0.0, "undecided", "0 points"),
        (0.01, "holds", "1 point"),
    ],
)
def test_scores_are_compared_in_points(gain: float, verdict: str, headline: str) -> None:
    finding, _ = measured(score, scores_of(gain))
    relu = effect(finding, RELU)
    assert samples(relu) == pytest.approx([100 * gain] * 6, **tolerance.OF_SCORES)
    assert replace(relu, least=(100 * gain,) * 6, most=(100 * gain,) * 6).headline() == headline
    assert finding.parts()[RELU] == verdict
    assert finding.numbers["networks"]["relu"]["rates"] == {"none": 0.32, "before": 0.32}


def test_the_best_score_at_the_edge_of_the_grid_is_an_obstacle() -> None:
    def how(spec: Spec) -> Outcome:
        run = scores_of(0.05)(spec)
        if spec.placement == "before" and spec.activation == "relu":
            return made.jump(spec, 10, high=0.9 + math.log10(spec.rate) / 100)
        return run

    finding, _ = measured(score, how)
    assert effect(finding, RELU).obstacle == "with it, the best learning rate, 3200, is the highest that was tried"
    assert finding.parts()[RELU] == "undecided"


def test_the_score_is_that_of_the_step_with_the_best_validation_score() -> None:
    def how(spec: Spec) -> Outcome:
        run = scores_of(0.05)(spec)
        if spec.placement == "before":  # the test score falls after the validation score has been highest
            late = [0.6 if at > 22 else score for at, score in zip(run.steps, run.test, strict=True)]
            dips = [s - 0.01 if at > 22 else s for at, s in zip(run.steps, run.validation, strict=True)]
            return replace(run, test=late, validation=dips)
        return run

    finding, _ = measured(score, how)
    assert samples(effect(finding, RELU)) == pytest.approx([5.0] * 6, **tolerance.EXACT_LINE)


def test_a_run_without_a_score_says_nothing_about_scores() -> None:
    def how(spec: Spec) -> Outcome:
        run = scores_of(0.05)(spec)
        return made.diverged(run, after=-1) if spec.placement == "before" and spec.seed == 0 else run

    finding, _ = measured(score, how)
    assert (effect(finding, RELU).least[0], effect(finding, RELU).most[0]) == (-math.inf, math.inf)
    assert finding.parts()[RELU] == "undecided"


def test_learning_rates_that_work_are_counted_seed_by_seed() -> None:
    finding = found(learning_rate, four_times_faster)
    assert samples(effect(finding, RELU)) == [1.0] * 6  # two rates against one, a decade each
    assert samples(effect(finding, SIGMOID)) == [2.0] * 6
    assert finding.numbers["networks"]["sigmoid"]["usable"] == {"none": [1.0], "before": [0.1, 1.0, 10.0]}
    assert samples(effect(finding, RELU, decides=False)) == [0.0] * 6  # 0.32 is the highest on either side
    assert samples(effect(finding, SIGMOID, decides=False)) == pytest.approx([1.0] * 6, **tolerance.EXACT_LINE)
    assert finding.summary == (
        "In the ReLU network, the range of learning rates that work is wider by 1 decade with batch normalization (a "
        "decade is a factor of ten)."
    )

    def one_seed(spec: Spec) -> float:
        return made.NEVER if spec.seed == 3 and spec.rate == 0.1 else four_times_faster(spec)

    assert samples(effect(found(learning_rate, one_seed), SIGMOID)) == [2.0, 2.0, 2.0, 1.0, 2.0, 2.0]


def test_a_grid_of_rates_is_continued_as_long_as_its_last_one_works() -> None:
    def arrival(spec: Spec) -> float:
        if spec.placement == "before" and spec.activation == "relu":
            return {0.32: 10}.get(spec.rate, 22 if spec.rate > 0.32 else made.NEVER)
        return four_times_faster(spec)

    finding = found(learning_rate, arrival)
    relu = effect(finding, RELU)
    usable = finding.numbers["networks"]["relu"]["usable"]["before"]
    assert usable == [0.32, 3.2, 32.0, 320.0]  # two more, and the last one works still
    assert (relu.least, relu.most) == ((3.0,) * 6, (math.inf,) * 6)
    assert (relu.headline(), relu.verdict()) == ("at least 3 decades", "holds")


def test_where_no_rate_works_on_either_side_nothing_is_decided() -> None:
    """The goal is reached in the sigmoid network only."""
    finding = found(learning_rate, lambda s: four_times_faster(s) if s.activation == "sigmoid" else made.NEVER)
    assert effect(finding, RELU).obstacle == "nothing that was tried works on either side"
    assert finding.parts() == {RELU: "undecided", SIGMOID: "holds"}
    assert "cannot be compared" in finding.summary


def test_initial_stds_that_work_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "LOW", -3.0)
    monkeypatch.setattr(initialization, "HIGH", 1.0)
    finding = found(initialization, four_times_faster)
    assert samples(effect(finding, RELU)) == [2.0] * 6
    assert samples(effect(finding, SIGMOID)) == [3.0] * 6  # without it, no run arrives within half of the steps
    assert set(finding.numbers["networks"]["relu"]["ends"]["none"]) == {"0.001", "0.01", "0.1", "1", "10"}
    wide = found(initialization, lambda s: four_times_faster(replace(s, std=0.1) if s.std else s))
    assert set(wide.numbers["networks"]["relu"]["ends"]["none"]) == {
        "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10", "100", "1000"
    }  # fmt: skip
    assert effect(wide, RELU).bound == "unknown"


def test_stds_are_tried_at_the_rate_that_is_best_for_the_usual_initialization() -> None:
    _, study = measured(initialization, made.arriving(four_times_faster))
    assert {s.rate for s in study.lab.outcomes if s.std and s.activation == "relu"} == {0.32}
    assert {s.rate for s in study.lab.outcomes if s.std and s.activation == "sigmoid"} == {1.0}


def test_placement_is_steps_after_by_steps_before_network_by_network() -> None:
    finding = found(placement, four_times_faster)
    assert samples(effect(finding, RELU)) == [22 / 10] * 6
    assert samples(effect(finding, SIGMOID)) == [5 / 10] * 6
    assert finding.parts() == {RELU: "holds", SIGMOID: "does not hold"}
    assert finding.verdict() == "mixed"
    assert finding.summary == (
        "In the ReLU network, before the activation is faster (steps after ÷ before: 2.2×); in the sigmoid network, "
        "after the activation is faster (steps after ÷ before: 0.5×)."
    )


SCALES = Problem({"main": made.table(), "scales": replace(made.table(), name="uneven scales")})


def test_scaled_inputs_are_compared_with_raw_ones() -> None:
    finding = found(input_scaling, four_times_faster)
    standard, minmax, first = finding.effects
    assert samples(standard) == [41 / 10] * 6
    assert samples(minmax) == [41 / 22] * 6
    assert samples(first) == [1.0] * 6
    assert (first.side, first.verdict()) == ("below", "holds")
    assert set(finding.parts().values()) == {"holds"}
    assert finding.numbers["data"] == "two classes"
    _, study = measured(input_scaling, made.arriving(four_times_faster), problem=SCALES)
    assert {s.data for s in study.lab.outcomes} == {"scales"}


def test_slow_normalization_of_inputs_does_not_do_the_same() -> None:
    slow = found(input_scaling, lambda s: 22 if s.placement == "first" and s.rate == 0.01 else four_times_faster(s))
    assert slow.parts()["batch normalization first"] == "does not hold"
    assert slow.verdict() == "mixed"


def unlearnable(spec: Spec) -> Outcome:
    return made.jump(spec, made.NEVER, low=0.0)


def hopeless(spec: Spec) -> Outcome:
    return made.diverged(made.jump(spec, made.NEVER), after=-1)


def regression() -> Problem:
    data = made.table()
    values = Dataset("values", "made by hand", data.x, data.x[:, 0].astype("float32"), "regression", metric="r2")
    return Problem({"main": values})


@pytest.mark.parametrize("how", [unlearnable, hopeless], ids=["guessing", "diverged"])
@pytest.mark.parametrize("problem", [made.PROBLEM, regression()], ids=["classes", "values"])
@pytest.mark.parametrize("claim", CORE, ids=lambda module: module.CLAIM.id)
def test_where_nothing_is_learned_nothing_is_decided_and_everything_is_said(
    claim: ModuleType, problem: Problem, how: made.Answer
) -> None:
    finding, _ = measured(claim, how, problem=problem)
    assert finding.verdict() == "undecided"
    assert finding.summary
    assert "nan" not in finding.summary
    assert "inf" not in finding.summary
    assert "∞" not in finding.summary
    assert isinstance(claim.CLAIM.picture(finding), Figure)
    claim.CLAIM.timed(finding, {"none": 1.0, "before": 1.0})


@pytest.mark.parametrize("claim", CORE, ids=lambda module: module.CLAIM.id)
def test_the_main_network_comes_first_and_each_is_named(claim: ModuleType) -> None:
    finding, _ = measured(claim, made.arriving(four_times_faster), settings=made.Quick(activation="gelu"))
    assert "relu" not in " ".join([finding.summary, *finding.notes, *(e.part for e in finding.effects)]).lower()
    if claim in (speed, score, learning_rate, initialization, placement):
        assert list(finding.parts()) == ["GELU network", SIGMOID]
        assert "GELU network" in finding.summary


def test_the_papers_network_alone_where_it_is_the_main_one() -> None:
    finding, study = measured(speed, made.arriving(four_times_faster), settings=made.Quick(activation="sigmoid"))
    assert study.networks == ("sigmoid",)
    assert list(finding.parts()) == [SIGMOID]
