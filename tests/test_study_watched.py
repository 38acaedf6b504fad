"""Claims that look into training, measured on outcomes made by hand: what each must say is known before."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import tolerance
from batchnorm.study import pictures, watched
from batchnorm.study.claims import covariate_shift, exploding_gradients, landscape
from batchnorm.study.design import Settings, Study
from batchnorm.study.findings import Claim, Finding
from batchnorm.study.training import Outcome, Spec
from study_outcomes import HIGH, LOW, QUICK, Answer, answer, answered, diverged, jump

NAN, INF = math.nan, math.inf
LAYERS = len(exploding_gradients.DEEP) + 1
CLAIMS = (covariate_shift.CLAIM, exploding_gradients.CLAIM, landscape.CLAIM)
WITH, WITHOUT = "before", "none"
Watch = Callable[[Spec, int], dict[str, Any]]
RATES = {("relu", WITHOUT): 0.032, ("relu", WITH): 0.32, ("sigmoid", WITHOUT): 0.1, ("sigmoid", WITH): 1.0}


def watching(watch: Watch, high: Callable[[Spec], float] = lambda _: HIGH) -> Answer:
    """Every run arrives, first at the rate of its side; one that is watched has what `watch` measures at each step."""

    def how(spec: Spec) -> Outcome:
        if not spec.probe:
            return jump(spec, 10 if spec.rate == RATES.get((spec.activation, spec.placement)) else 30)
        outcome = jump(spec, 10, high(spec))
        looks = [{"step": step, **watch(spec, step)} for step in outcome.steps]
        return replace(outcome, probed=[look for look in looks if len(look) > 1])

    return how


def found(claim: Claim, watch: Watch, settings: Settings = QUICK, **more: Any) -> Finding:
    return claim.measure(answered(watching(watch, **more), claim, settings=settings))


def samples(finding: Finding, part: str, name: str = "") -> tuple[float, ...]:
    (effect,) = (e for e in finding.effects if e.part == part and name in e.name)
    assert effect.least == effect.most
    return effect.least


def deep(decades: float, skill: float = 0.9) -> dict[str, Any]:
    """Norms that change by so many decades between the hidden layers, and differ wildly at both ends."""
    inner = [10 ** (-decades * i / (LAYERS - 3)) for i in range(LAYERS - 2)]
    return {"norms": [1e9, *inner, 1e-9], "skill": skill}


def at_both_ends(spec: Spec, step: int, seen: dict[str, Any]) -> dict[str, Any]:
    return seen if step in (0, spec.steps) else {}


def test_decades_between_layers_decide_network_by_network() -> None:
    apart = {("relu", WITHOUT): 0.25, ("relu", WITH): 1.5, ("sigmoid", WITHOUT): -11.0, ("sigmoid", WITH): 0.5}
    finding = found(
        exploding_gradients.CLAIM, lambda s, step: at_both_ends(s, step, deep(apart[s.activation, s.placement]))
    )
    assert samples(finding, "ReLU network") == pytest.approx((-1.25,) * 6, **tolerance.EXACT_LINE)
    assert samples(finding, "sigmoid network") == pytest.approx((10.5,) * 6, **tolerance.EXACT_LINE)
    assert finding.parts() == {"ReLU network": "does not hold", "sigmoid network": "holds"}
    assert finding.verdict() == "mixed"
    assert "1.25 decades farther apart with" in finding.summary
    assert "grows by 0.25 decades without batch normalization and grows by 1.5 decades with" in finding.notes[0]
    assert "shrinks by 11 decades without" in finding.notes[2]


def test_how_short_runs_end_is_counted() -> None:
    def watch(spec: Spec, step: int) -> dict[str, Any]:
        slow = spec.placement == WITHOUT and spec.rate == 0.01
        share = {0.01: 0.1, 0.1: 0.5, 1.0: 0.05, 10.0: NAN}[spec.rate] if spec.placement == WITHOUT else 0.9
        return at_both_ends(spec, step, deep(3.0 if slow and step == spec.steps else 0.0, share if step else 0.0))

    finding = found(exploding_gradients.CLAIM, watch)
    network = finding.numbers["networks"]["relu"]
    assert network["ends"][WITHOUT] == {"learned": 2, "stayed at guessing": 1, "diverged": 1}
    assert network["ends"][WITH] == {"learned": 4, "stayed at guessing": 0, "diverged": 0}
    assert network["decades after training"][WITHOUT] == pytest.approx([3.0, 0.0], **tolerance.EXACT_LINE)
    assert "of 4 runs without it, 2 learned, 1 stayed at guessing, 1 diverged" in finding.notes[1]


@pytest.mark.parametrize(("first", "last"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN)])
def test_gradients_that_are_not_finite_say_nothing(first: float, last: float) -> None:
    assert math.isnan(exploding_gradients.decades([1.0, first, 1.0, last, 1.0]))


def test_a_gradient_that_has_vanished_counts_as_the_smallest_number() -> None:
    assert exploding_gradients.decades([1.0, 0.0, 1.0, 1.0]) == pytest.approx(-44.85, **tolerance.ON_A_GRID)


def along(factor: float) -> dict[str, Any]:
    """A look whose three measures are 2, 3 and 5 times a factor."""
    plain = {"loss": 1.0, "lowest": 0.5, "highest": 0.5 + 2 * factor}
    return {**plain, "range": 2 * factor, "change": 3 * factor, "beta": 5 * factor}


def looked(spec: Spec, step: int, factor: float) -> dict[str, Any]:
    return along(factor) if step in landscape.looks(spec.steps) else {}


def test_landscape_compares_medians_over_the_steps() -> None:
    def watch(spec: Spec, step: int) -> dict[str, Any]:
        rough = {"relu": 8.0, "sigmoid": 0.5}[spec.activation] if spec.placement == WITHOUT else 1.0
        return looked(spec, step, 1e6 if step in (0, 120) else rough)  # two steps are unlike the others

    finding = found(landscape.CLAIM, watch)
    for measure in ("loss", "gradient", "effective smoothness"):
        assert samples(finding, f"ReLU network, {measure}") == (8.0,) * 6
        assert samples(finding, f"sigmoid network, {measure}") == (0.5,) * 6
        assert finding.parts()[f"ReLU network, {measure}"] == "holds"
        assert finding.parts()[f"sigmoid network, {measure}"] == "does not hold"
    assert finding.verdict() == "mixed"
    assert "varies 8 times less with batch normalization than without" in finding.summary


def test_both_sides_train_at_the_rate_that_is_best_without() -> None:
    study = answered(watching(lambda s, step: looked(s, step, 1.0)), landscape.CLAIM)
    watched_rates = {(s.activation, s.placement, s.rate) for s in study.lab.outcomes if s.probe}
    assert watched_rates == {(n, p, RATES[n, WITHOUT]) for n in ("relu", "sigmoid") for p in (WITHOUT, WITH)}
    study = answered(watching(shifting(1.0, 1.0)), covariate_shift.CLAIM)
    assert {((s.activation, s.placement), s.rate) for s in study.lab.outcomes if s.probe} == set(RATES.items())


@pytest.mark.parametrize(
    ("scores", "said"),
    [((0.8, 0.95), "also more accurate: in 1 of"), ((0.95, 0.8), "not always more accurate: in 0 of")],
)
def test_smoothness_is_compared_with_the_score(scores: tuple[float, float], said: str) -> None:
    ends = dict(zip((WITHOUT, WITH), scores, strict=True))
    finding = found(
        landscape.CLAIM,
        lambda s, step: looked(s, step, 4.0 if s.placement == WITHOUT else 1.0),
        high=lambda s: ends[s.placement],
    )
    ranked = finding.numbers["settings"]
    assert [(row["beta"], row["score"]) for row in ranked] == [(5.0, scores[1]), (20.0, scores[0])]
    assert f"Smoother is {said} the 1 pair of ways to train the ReLU network" in finding.notes[0]
    assert (
        f"with batch normalization (5; {scores[1]}), without batch normalization (20; {scores[0]})" in finding.notes[0]
    )


def test_a_full_study_compares_more_ways_to_train() -> None:
    def watch(spec: Spec, step: int) -> dict[str, Any]:
        return looked(spec, step, 0.1 if spec.std else 2.0 if spec.norm == "layer" else 1.0)

    ends = {"layer": 0.8}
    finding = found(landscape.CLAIM, watch, Settings(), high=lambda s: LOW if s.std else ends.get(s.norm, HIGH))
    ranked = finding.numbers["settings"]
    assert len(ranked) == 6
    assert (ranked[0]["name"], ranked[0]["score"]) == ("without, initial weights of std 0.01", LOW)
    assert ranked[-1]["name"] == "with layer normalization"
    # the smoothest is worse than the five others; the roughest is worse than four; those four are equal
    assert "not always more accurate: in 4 of 15 pairs of ways" in finding.notes[0]


def shifting(drift: float, change: float) -> Watch:
    """Units whose percentiles range over `drift` without and 1 with, of a spread of 2; and gradients that change."""

    def watch(spec: Spec, step: int) -> dict[str, Any]:
        moved = (drift if spec.placement == WITHOUT else 1.0) * (step >= 10)
        seen: dict[str, Any] = {"percentiles": [[level + moved, level - moved, 0.0] for level in (-1.0, 0.0, 1.0)]}
        ratio = change if spec.placement == WITHOUT else 1.0
        changes = {"relative": 0.2 * ratio, "turn": 0.1 * ratio**2}
        return seen | (changes if step in covariate_shift.looks(spec.steps) else {})

    return watch


@pytest.mark.parametrize(
    ("drift", "change", "percentiles", "gradients", "verdict"),
    [
        (4.0, 0.5, "holds", "does not hold", "mixed"),
        (4.0, 2.0, "holds", "holds", "holds"),
        (1.25, 2.0, "does not hold", "holds", "mixed"),
        (0.5, 0.5, "does not hold", "does not hold", "does not hold"),
    ],
)
def test_the_two_measures_of_covariate_shift_have_marks_of_their_own(
    drift: float, change: float, percentiles: str, gradients: str, verdict: str
) -> None:
    finding = found(covariate_shift.CLAIM, shifting(drift, change))
    part = "ReLU network"
    assert samples(finding, f"{part}, percentiles") == (drift,) * 6
    assert samples(finding, f"{part}, gradients", "change of") == pytest.approx((change,) * 6, **tolerance.EXACT_LINE)
    assert samples(finding, f"{part}, gradients", "turn") == pytest.approx((change**2,) * 6, **tolerance.EXACT_LINE)
    assert finding.parts() == {
        f"{network}, {measure}": mark
        for network in (part, "sigmoid network")
        for measure, mark in (("percentiles", percentiles), ("gradients", gradients))
    }
    assert finding.verdict() == verdict


def test_the_summary_names_one_number_and_what_gradients_do() -> None:
    said = {c: found(covariate_shift.CLAIM, shifting(4.0, c)).summary for c in (0.5, 2.0)}
    assert said[0.5].endswith("moves 4 times less with batch normalization, but its gradients do not.")
    assert said[2.0].endswith("and the gradients of its layers change less too.")


@pytest.mark.parametrize("claim", [covariate_shift.CLAIM, landscape.CLAIM])
def test_a_side_that_does_not_learn_decides_nothing(claim: Claim) -> None:
    watch = shifting(4.0, 2.0) if claim is covariate_shift.CLAIM else lambda s, step: looked(s, step, 1.0)
    halfway = LOW + 0.49 * (HIGH - LOW)
    finding = found(
        claim, watch, high=lambda s: halfway if (s.activation, s.placement) == ("sigmoid", WITHOUT) else HIGH
    )
    for effect in finding.effects:
        stuck = effect.part.startswith("sigmoid")
        assert effect.obstacle.startswith("without it, the network does not get halfway") == stuck
        assert bool(effect.obstacle) == stuck


def test_runs_that_diverge_say_nothing_and_are_counted() -> None:
    def watch(spec: Spec, step: int) -> dict[str, Any]:
        gone = spec.placement == WITHOUT and spec.seed < 2 and step > 20
        return looked(spec, step, NAN if gone else 8.0 if spec.placement == WITHOUT else 1.0)

    finding = found(landscape.CLAIM, watch)
    (effect,) = (e for e in finding.effects if e.part == "ReLU network, loss")
    assert (effect.least, effect.most) == ((0.0, 0.0, 8.0, 8.0, 8.0, 8.0), (INF, INF, 8.0, 8.0, 8.0, 8.0))
    assert effect.verdict() == "undecided"
    assert any(
        "In the ReLU network, 2 of 6 runs without batch normalization diverged" in note for note in finding.notes
    )


def test_a_unit_that_diverges_or_stands_still_is_no_drift() -> None:
    still = [{"percentiles": [[0.0, 0.0, 1.0]] * 3}] * 2
    assert math.isnan(covariate_shift._typical_drift(still))
    mostly = [{"percentiles": [[-1.0, -1.0, NAN], [0.0, 0.0, NAN], [1.0, 1.0, NAN]]}] * 2
    assert covariate_shift._typical_drift(mostly) == 0.0


@pytest.mark.parametrize("claim", CLAIMS)
def test_added_seeds_are_measured_too(claim: Claim) -> None:
    how = watching(every_measure)
    study = answered(how, claim, settings=replace(QUICK, seeds=12))
    assert {len(e.least) for e in claim.measure(study).effects} == {6}
    more = answer(study.at(12), how, claim.runs)
    assert {len(e.least) for e in claim.measure(more).effects} == {12}


def every_measure(spec: Spec, step: int) -> dict[str, Any]:
    return shifting(4.0, 0.5)(spec, step) | looked(spec, step, 2.0) | at_both_ends(spec, step, deep(1.0))


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("gone", [False, True])
def test_pictures_show_the_number_also_of_runs_that_diverged(claim: Claim, gone: bool) -> None:
    def watch(spec: Spec, step: int) -> dict[str, Any]:
        seen = every_measure(spec, step)
        lost = gone and spec.placement == WITHOUT
        return {name: _lost(value) for name, value in seen.items()} if lost else seen

    finding = found(claim, watch)
    text = pictures.inline(claim.picture(finding), "key", "title", "description")
    number = {"covariate-shift": "move 4 times less", "exploding-gradients": "1 decades without, 1 with",
              "landscape": "loss varies as much"}[claim.id]  # fmt: skip
    assert (number in text) != gone
    assert "nan" not in text.lower() or gone
    assert ("unknown" in finding.summary) == gone


def _lost(value: Any) -> Any:
    return [_lost(v) for v in value] if isinstance(value, list) else NAN


def test_where_nothing_can_be_learned_nothing_is_decided() -> None:
    def how(spec: Spec) -> Outcome:
        return replace(jump(spec, 10, LOW), probed=[{"step": s, **every_measure(spec, s)} for s in (0, 3, 6)])

    for claim in (covariate_shift.CLAIM, landscape.CLAIM):
        finding = claim.measure(answered(how, claim))
        assert finding.verdict() == "undecided"
        assert all(" and with it, the network does not get halfway" in effect.obstacle for effect in finding.effects)


def test_a_score_of_a_diverged_run_is_no_learning() -> None:
    def how(spec: Spec) -> Outcome:
        outcome = jump(spec, 10)
        return diverged(outcome, 20) if spec.probe and spec.placement == WITHOUT else outcome

    study: Study = answer(answered(how, covariate_shift.CLAIM), how)
    specs = {side: covariate_shift._spec(study, "relu", side) for side in (WITHOUT, WITH)}
    assert watched.unlearned(study, specs).startswith("without it, the network does not get halfway")
