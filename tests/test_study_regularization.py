"""The claims on the noise of batch statistics, on outcomes made by hand; and the probe that they read."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import study_outcomes as made
import tolerance
from batchnorm.study import pictures, shipped, statistics_probe
from batchnorm.study.claims import alternatives, limits, noise_law, regularization, score
from batchnorm.study.course import Course
from batchnorm.study.design import Settings
from batchnorm.study.findings import Claim, Finding
from batchnorm.study.networks import base_network
from batchnorm.study.statistics_probe import QUANTITIES, SIZES
from batchnorm.study.training import Outcome, Problem, Rows, Spec, losses, predict, train
from batchnorm.torch import BatchNorm

Look = dict[str, Any]
PARTS = ("the data as they are", "30 % random labels", "50 training rows")
LAW = {q: {str(m): 0.7 / m for m in SIZES} for q in QUANTITIES} | {"layers": [1.0, 0.02, 0.02]}
TABLE = Problem({"main": made.table(200)})
DIGITS = Problem({"main": replace(shipped.digits(), metric="accuracy")})
SPEC = Spec("main", "before", "relu", "minmax", "sgd", 30, 12, statistics_probe.PROBE, None, 0.3, 0, hidden=(16, 16))


def look(test: float, **changed: Any) -> Look:
    """What the probe says after the last step."""
    ends = {"train": 0.1, "running": test, "score": 0.9, "running_score": 0.9}
    return {"step": 120, "validation": 0.4, "test": test, **ends, **LAW, **changed}


def probing(looks: Callable[[Spec], Look | list[Look]]) -> made.Answer:
    """Return the answer that lets a run's probe say so; of runs without a probe, those at rate 0.32 are the best."""

    def how(spec: Spec) -> Outcome:
        if not spec.probe:
            return made.jump(spec, 10, made.HIGH if spec.rate == 0.32 else 0.9)
        said = looks(spec)
        return Outcome([spec.steps], [0.9], [0.9], said if isinstance(said, list) else [said])

    return how


def measured(claim: Claim, how: made.Answer, **of: Any) -> Finding:
    study = made.answered(how, claim, **{"problem": TABLE, **of})
    finding = claim.measure(study).scheduled(study.settings.schedule, check=claim.check)
    if finding.numbers:
        pictures.inline(claim.picture(finding), claim.id, claim.title, claim.caption)
    return finding


def by_size(whole: float, group: float, small: float = 0.5) -> Callable[[Spec], Look]:
    """The test loss in whole batches, in groups of 15 and in groups of 4, a little apart from seed to seed."""
    return lambda s: look({None: whole, 15: group, 4: small}[s.virtual_batch_size] * (1 + s.seed / 100))


@pytest.mark.parametrize(
    ("group", "verdict", "word"),
    [
        (0.2, "holds", "regularises"),
        (0.8, "does not hold", "does not regularise"),
        (0.4, "undecided", "does not clearly regularise"),
    ],
)
def test_regularization_is_the_test_loss_in_groups_by_that_in_whole_batches(
    group: float, verdict: str, word: str
) -> None:
    finding = measured(regularization.CLAIM, probing(by_size(0.4, group, small=4.0)))
    assert finding.parts() == dict.fromkeys(PARTS, verdict)
    for effect in (e for e in finding.effects if e.decides):
        assert effect.least == pytest.approx((group / 0.4,) * 6, **tolerance.FEW_ROUNDINGS)
    assert f"the noise of groups of 15 rows {word}: " in finding.summary
    beside = [e for e in finding.effects if "groups of 4 ÷" in e.name]
    assert [e.least[0] for e in beside] == pytest.approx([10.0] * 3, **tolerance.FEW_ROUNDINGS)
    assert not any(e.decides for e in beside)


def test_each_protocol_has_a_mark_of_its_own() -> None:
    def group(s: Spec) -> float:
        return 0.2 if s.label_noise else 0.8 if s.rows else 0.4 + 0.1 * (-1) ** s.seed

    finding = measured(regularization.CLAIM, probing(lambda s: look(group(s) if s.virtual_batch_size == 15 else 0.4)))
    assert finding.parts() == dict(zip(PARTS, ("undecided", "holds", "does not hold"), strict=True))
    assert finding.verdict() == "mixed"
    assert finding.summary.startswith("With 30 % random labels, the noise of groups of 15 rows regularises: ")


def test_early_stopping_takes_the_step_with_the_least_validation_loss() -> None:
    def looks(s: Spec) -> list[Look]:
        at_best = 0.3 if s.virtual_batch_size == 15 else 0.2
        middle = {"step": 50, "validation": 0.1, "test": at_best}
        return [{"step": 2, "validation": 0.9, "test": 9.0}, middle, look(0.5 if s.virtual_batch_size == 15 else 1.0)]

    finding = measured(regularization.CLAIM, probing(looks))
    last, early = finding.effects[:2]
    assert last.least == (0.5,) * 6
    assert "with early stopping" in early.name
    assert early.least == pytest.approx((1.5,) * 6, **tolerance.FEW_ROUNDINGS)
    assert not early.decides


@pytest.mark.parametrize(("where", "ratio"), [(15, 2 / 0.4), (None, 0.4 / 2)])
def test_a_run_that_diverges_counts_as_the_worst_of_all_and_is_counted(where: int | None, ratio: float) -> None:
    def looks(s: Spec) -> Look:
        if s.virtual_batch_size == 4:
            return look(2.0)
        gone = s.virtual_batch_size == where and s.seed < 2
        return look(math.nan, score=math.nan) if gone else look(0.4)

    finding = measured(regularization.CLAIM, probing(looks))
    assert sorted(finding.effects[0].least)[0 if where is None else -1] == pytest.approx(
        ratio, **tolerance.FEW_ROUNDINGS
    )
    assert finding.effects[2].least[0] == pytest.approx(100 * (0.5 - 0.9) * (1 if where else -1))  # guessing
    group = "groups of 15" if where else "whole batches"
    assert f"With {PARTS[0]}, 2 of 6 runs in {group} diverged; each counts as the worst loss of all." in finding.notes


def test_a_network_that_guesses_is_no_better_than_its_loss() -> None:
    finding = measured(regularization.CLAIM, probing(lambda s: look(math.nan if s.virtual_batch_size == 15 else 0.4)))
    assert finding.effects[0].least == pytest.approx((math.log(2) / 0.4,) * 6, **tolerance.FEW_ROUNDINGS)


@pytest.mark.parametrize(
    ("rows", "parts"), [(60, PARTS[:2]), (200, PARTS), (500, (*PARTS[:2], "150 training rows")), (400, None)]
)
def test_few_rows_are_tried_where_there_are_twice_as_many(rows: int, parts: tuple[str, ...] | None) -> None:
    problem = Problem({"main": made.table(rows)})
    study = made.study_of(problem=problem, settings=Settings(quick=True, batch_size=30))
    assert tuple(p.part for p in regularization.protocols(study)) == (parts or (*PARTS[:2], "100 training rows"))


def test_values_get_noise_of_their_own_size() -> None:
    problem = Problem({"main": made.table(200, task="regression", classes=(), metric="r2")})
    finding = measured(regularization.CLAIM, probing(by_size(0.4, 0.2)), problem=problem)
    assert "targets with as much noise again" in finding.parts()
    assert "test squared error" in finding.effects[0].name
    study = made.study_of(problem=problem)
    assert regularization.grouped(study, regularization.noisy(study), None).label_noise == 1.0


def test_batches_that_cannot_be_split_are_not() -> None:
    finding = measured(regularization.CLAIM, probing(by_size(0.4, 0.2)), settings=Settings(quick=True, batch_size=15))
    assert finding.verdict() == "not measured"
    assert finding.skipped == "needs batches of 16 rows or more, to split them in two, got 15"


@pytest.mark.parametrize(
    ("power", "below", "verdict"),
    [
        (-1.0, 1.0, "holds"),
        (-1.0, 9.0, "holds"),  # what groups of 2 and 4 do says nothing about the law
        (-0.5, 1.0, "does not hold"),
        (-1.5, 1.0, "does not hold"),
        (math.nan, 1.0, "undecided"),  # a run that has diverged says nothing
    ],
)
def test_the_noise_law_is_the_power_of_the_rows(power: float, below: float, verdict: str) -> None:
    noise = {q: {str(m): 0.7 * m**power * (below if m < 8 else 1) for m in SIZES} for q in QUANTITIES}
    finding = measured(noise_law.CLAIM, probing(lambda _: look(0.4, **noise)))
    assert finding.parts() == dict.fromkeys((f"variance of the {q}" for q in QUANTITIES.values()), verdict)
    if math.isnan(power):
        assert finding.summary.startswith("No noise could be measured: every run diverged")
        return
    for effect in finding.effects:
        assert effect.least == pytest.approx((abs(power + 1.0),) * 6, **tolerance.LEAST_SQUARES)
    assert finding.summary.endswith(f"m^{power:g}.".replace("-", "−"))


def test_a_network_that_has_diverged_says_nothing_about_the_law() -> None:
    gone = {q: {str(m): math.nan for m in SIZES} for q in QUANTITIES} | {"layers": [math.nan] * 3}
    finding = measured(noise_law.CLAIM, probing(lambda s: look(0.4, **(gone if s.seed == 0 else {}))))
    assert finding.effects[0].most == (math.inf, *(pytest.approx(0.0, **tolerance.LEAST_SQUARES),) * 5)
    assert finding.notes[-1] == "1 of 6 runs diverged, or their outputs do not vary, and say nothing."


def test_on_few_rows_nothing_is_decided_where_nothing_is_learned() -> None:
    problem = Problem({"main": made.table(200, task="regression", classes=(), metric="r2")})
    finding = measured(
        limits.CLAIM, lambda s: probing(two)(s) if s.probe else made.jump(s, math.inf, low=-0.1), problem=problem
    )
    assert finding.parts()["50 training rows"] == "undecided"
    assert finding.effects[-1].obstacle == "no run learns anything"


def test_the_claims_train_no_run_in_two_companies() -> None:
    """The lab made by hand refuses units that overlap; some of these claims add seeds, and others do not."""
    study = made.study_of(how=probing(lambda s: look(0.4 + 0.1 * (-1) ** s.seed if s.label_noise else 0.4)))
    claims = [c.CLAIM for c in (limits, noise_law, regularization, score, alternatives)]
    course = Course(study, claims, None)
    course.run()
    assert set(course.findings) == {claim.id for claim in claims}
    assert set(course.counts.values()) == {6, 12}


def test_noise_law_and_regularization_share_their_runs() -> None:
    study = made.study_of()
    assert noise_law.CLAIM.runs(study)[0] in regularization.CLAIM.runs(study)


def two(s: Spec, running: float = 0.6, test: float = 0.8) -> Look:
    """Groups of two beside those of 15, which score 0.7."""
    return look(test, running_score=running, score=0.65) if s.virtual_batch_size == 2 else look(0.4, running_score=0.7)


@pytest.mark.parametrize(
    ("running", "test", "gain", "spread", "verdict"),
    [
        (0.6, 0.8, 0.0, 0.0, "holds"),
        (0.8, 0.2, 0.05, 0.0, "does not hold"),
        (0.7, 0.4, 0.01, 0.1, "undecided"),
    ],
)
def test_limits_are_each_measured(running: float, test: float, gain: float, spread: float, verdict: str) -> None:
    def how(spec: Spec) -> Outcome:
        apart = spread * (-1) ** spec.seed
        if spec.rows is not None and not spec.probe:
            score = 0.75 + (gain + apart if spec.placement == "before" else 0.0)
            return Outcome([0, spec.steps], [0.5, score], [0.5, score])
        return probing(lambda s: two(s, running + apart, test + apart))(spec)

    finding = measured(limits.CLAIM, how)
    assert finding.parts() == dict.fromkeys((limits.SMALLER, limits.MOVING, "50 training rows"), verdict)
    assert finding.numbers["rates"] == {"none": 0.32, "before": 0.32}
    ratio, fall, rescue, gained = (e.least[0] for e in finding.effects)
    assert ratio == pytest.approx((test + spread) / 0.4, **tolerance.FEW_ROUNDINGS)
    assert rescue == pytest.approx(100 * (running + spread - 0.65), **tolerance.LEAST_SQUARES)
    assert [e.decides for e in finding.effects] == [True, True, False, True]
    assert fall == pytest.approx(100 * (running + spread - 0.7), **tolerance.LEAST_SQUARES)
    assert gained == pytest.approx(100 * (gain + spread), **tolerance.LEAST_SQUARES)
    assert finding.effects[-1].threshold == 1.0


def test_a_limit_that_cannot_be_shown_is_left_out() -> None:
    few = Problem({"main": made.table(60)})
    finding = measured(limits.CLAIM, probing(two), problem=few, settings=Settings(quick=True, batch_size=30))
    assert tuple(finding.parts()) == (limits.SMALLER, limits.MOVING)
    assert "There are too few training rows to compare with fewer." in finding.notes
    finding = measured(limits.CLAIM, probing(two), settings=Settings(quick=True, batch_size=10))
    assert tuple(finding.parts()) == ("50 training rows",)
    assert finding.summary.startswith("On 50 training rows, batch normalization changes the best test accuracy by ")
    finding = measured(limits.CLAIM, probing(two), problem=few, settings=Settings(quick=True, batch_size=10))
    assert finding.verdict() == "not measured"


def test_recalibrated_statistics_are_those_of_all_rows() -> None:
    network = base_network(
        5, 3, placement="before", activation="sigmoid", seeds=[0, 1], stds=[None, 1.0], virtual_batch_size=4
    )
    layers = [m for m in network if isinstance(m, BatchNorm)]
    x, other = torch.randn(2, 50, 5) * 3 + 1, torch.randn(2, 7, 5)
    network(x)
    before = [(b.clone(), b) for layer in layers for b in layer.buffers()]
    (got,) = statistics_probe.recalibrated(network, x, other)
    assert all(torch.equal(was, now) for was, now in before)
    assert all((m.training, m.virtual_batch_size, m.momentum) == (True, 4, 0.1) for m in layers)
    rows, asked = x.double().numpy(), other.double().numpy()
    *hidden, last = [
        m.weight.detach().double().numpy() for m in network if not isinstance(m, torch.nn.Sigmoid | BatchNorm)
    ]
    for weight in hidden:
        rows, asked = rows @ weight, asked @ weight
        mean, var = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
        asked = 1 / (1 + np.exp(-(asked - mean) / np.sqrt(var * 50 / 49 + layers[0].eps)))
        rows = 1 / (1 + np.exp(-(rows - mean) / np.sqrt(var + layers[0].eps)))
    tolerance.assert_close(got, asked @ last, "float32", np.abs(last).sum(1, keepdims=True))


def test_noise_is_that_of_the_groups_the_layer_normalises_by() -> None:
    layer = BatchNorm((2, 1, 3), axis=(0, 2))
    x = torch.randn(2, 12, 3) * 2 + 1
    with statistics_probe._training(layer, 4) as layers, statistics_probe._moments(layers, 3) as (collected,):
        y = layer(x)
    ((mean, var),) = collected
    normalised = (x.unflatten(1, (4, 3)) - mean[:, None]) / torch.sqrt(var[:, None] + layer.eps)
    tolerance.assert_close(y, normalised.flatten(1, 2), "float32", y.abs().max().item())
    rows = Rows.of(DIGITS.datasets["main"], [SPEC])
    network = base_network(64, 10, placement="before", activation="sigmoid", seeds=[0], stds=[None], hidden=(16, 16))
    (noise,) = statistics_probe.noise(network, Rows.of(replace(rows.data, x=rows.data.x.reshape(-1, 64)), [SPEC]))
    assert noise["layers"][0] == pytest.approx(1.0, **tolerance.OF_RANDOM_GROUPS)  # of independent rows Var(μ_B) = σ²/m


@pytest.mark.parametrize(
    ("choices", "with_noise"),
    [({}, True), ({"virtual_batch_size": 4}, False), ({"label_noise": 0.3}, False), ({"placement": "none"}, False)],
)
def test_the_probe_changes_nothing_and_says_what_it_is_asked(choices: dict[str, Any], with_noise: bool) -> None:
    spec = replace(SPEC, **choices)
    (watched,), (alone,) = train([spec], DIGITS), train([replace(spec, probe="")], DIGITS)
    assert (watched.validation, watched.test) == (alone.validation, alone.test)
    assert [seen["step"] for seen in watched.probed] == statistics_probe.looks(12)
    assert all(set(seen) == {"step", "validation", "test"} for seen in watched.probed[:-1])
    assert ("mean" in watched.probed[-1]) == with_noise
    assert watched.probed[-1]["running_score"] == watched.test[-1]
    assert (watched.probed[-1]["score"] == watched.test[-1]) == (spec.placement == "none")


def test_losses_are_those_of_recalibrated_and_of_running_statistics() -> None:
    rows = Rows.of(DIGITS.datasets["main"], [SPEC])
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(2), base_network(64, 10, placement="before", activation="relu", seeds=[0], stds=[None])
    )
    (seen,) = statistics_probe.probe(network, rows, SPEC.steps)
    x, y = rows.part("test")
    assert seen["running"] == losses(predict(network, x), y, rows.data).item()
    (recalibrated,) = statistics_probe.recalibrated(network, rows.part("train")[0][:, : statistics_probe.MOST_ROWS], x)
    assert seen["test"] == losses(recalibrated, y, rows.data).item() != seen["running"]
