"""The claim on the batch size, on steps and gradients that are known before."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import study_outcomes as made
import tolerance
from batchnorm.batch_size.gradient_noise import GroupGradients
from batchnorm.study import noise_probe, shipped, timing
from batchnorm.study.claims import batch_size, speed
from batchnorm.study.course import Course
from batchnorm.study.data import Dataset
from batchnorm.study.design import Settings, Study
from batchnorm.study.findings import Effect, Finding
from batchnorm.study.lab import Lab
from batchnorm.study.networks import base_network
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Outcome, Problem, Rows, Spec, losses, train

LEAST, CRITICAL = 10.0, 60.0
HALF = 0.5  # of a block's numbers, so that there is a spread
SIZES = (15, 60, 240)
BEST = {15: 0.1, 60: 0.32, 240: 1.0}  # the middle rate of each size


def law(critical: float = CRITICAL) -> Callable[[int], float]:
    return lambda size: math.ceil(LEAST * (1 + critical / size))


def runs_of(steps: Callable[[int], float], *, noise: float = CRITICAL, signal: float = 1.0) -> made.Answer:
    """Runs that arrive at the very step of their batch size, at its best rate; and gradients with a noise scale."""

    def how(spec: Spec) -> Outcome:
        if spec.placement == "none" or spec.activation == "sigmoid":
            return made.jump(spec, 97)
        at = steps(spec.batch_size) * (1 if spec.rate == BEST[spec.batch_size] else 2)
        marks = sorted({0, spec.steps} | ({int(at)} if at <= spec.steps else set()))
        scores = [made.HIGH if step >= at else made.LOW for step in marks]
        blocks = [[signal * (1 + s), noise * (1 + s)] for s in (-HALF, HALF) for _ in range(10)]
        seen = [{"step": at, "loss": 2.0 - at, "trained": 2.0 - at, "blocks": blocks} for at in (0, 1)]
        return Outcome(marks, scores, list(scores), seen if spec.probe else [])

    return how


def measured(how: made.Answer) -> Finding:
    return batch_size.measure(made.answered(how, batch_size.CLAIM))


def effects(finding: Finding) -> tuple[Effect, Effect, Effect]:
    within, better, constant = finding.effects
    return within, better, constant


@pytest.mark.parametrize("critical", [5.0, 60.0, 700.0])
def test_the_fit_recovers_a_known_law(critical: float) -> None:
    found = batch_size.fitted({b: 30 * (1 + critical / b) for b in (8, 15, 30, 60, 120, 240, 480)})
    assert found.critical == pytest.approx(critical, **tolerance.ON_A_GRID)
    assert found.least == pytest.approx(30, **tolerance.ON_A_GRID)
    assert not found.end
    uneven = {8: 1.3, 15: 0.8, 30: 1.1, 60: 0.9, 120: 1.1, 240: 0.9}
    noisy = batch_size.fitted({b: 30 * (1 + critical / b) * by for b, by in uneven.items()})
    assert 1 / 2 < noisy.critical / critical < 2


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_steps_without_a_bend_have_no_critical_size_within_reach(power: float) -> None:
    found = batch_size.fitted({b: 1000.0 * b**power for b in SIZES})
    assert found.end
    assert found.critical == pytest.approx(1.5 if power == 0.0 else 2400.0, **tolerance.FEW_ROUNDINGS)


def test_the_noise_tells_what_the_steps_say() -> None:
    finding = measured(runs_of(law()))
    within, better, constant = effects(finding)
    assert (within.verdict(), within.side, within.threshold) == ("holds", "below", 4.0)
    assert finding.numbers["steps"] == {"15": [50.0] * 6, "60": [20.0] * 6, "240": [13.0] * 6}
    assert finding.numbers["rates"] == {str(size): rate for size, rate in BEST.items()}
    assert finding.numbers["predicted"] == pytest.approx([CRITICAL] * 6, **tolerance.FEW_ROUNDINGS)
    assert finding.numbers["fitted"] == pytest.approx([CRITICAL] * 6, **tolerance.WHOLE_STEPS)
    assert batch_size.picture(finding).axes[0].get_legend() is not None
    # and yet it is no better than a constant, which happens to be the study's own size
    assert better.least == better.most == pytest.approx((1.0,) * 6, **tolerance.FEW_ROUNDINGS)
    assert better.verdict() != "holds"
    assert constant.least == pytest.approx((1.0,) * 6, **tolerance.WHOLE_STEPS)
    assert not constant.decides


def test_it_is_better_than_a_constant_where_the_critical_size_is_another() -> None:
    finding = measured(runs_of(law(240.0), noise=240.0))
    within, better, constant = effects(finding)
    assert finding.verdict() == "holds"
    assert better.least == pytest.approx((4.0,) * 6, **tolerance.WHOLE_STEPS)
    assert constant.least == pytest.approx((4.0,) * 6, **tolerance.WHOLE_STEPS)
    assert (within.part, better.part) == ("within a factor of 4", "better than a constant")


@pytest.mark.parametrize("apart", [0.1, 10.0])
def test_it_does_not_hold_where_the_noise_says_another_size(apart: float) -> None:
    within, better, _ = effects(measured(runs_of(law(), noise=apart * CRITICAL)))
    assert within.verdict() == better.verdict() == "does not hold"
    assert within.least == pytest.approx((10.0,) * 6, **tolerance.WHOLE_STEPS)
    assert better.least == pytest.approx((0.1,) * 6, **tolerance.WHOLE_STEPS)


def test_steps_that_do_not_depend_on_the_size_are_far_from_any_prediction() -> None:
    within, better, _ = effects(measured(runs_of(lambda _: 20.0)))
    assert within.verdict() == "does not hold"
    assert within.bound == "at least"  # Bcrit lies below what was searched
    assert better.bound == "unknown"


def test_a_size_that_never_arrives_leaves_two_which_make_no_law() -> None:
    finding = measured(runs_of(lambda size: law()(size) if size < 240 else made.NEVER))
    within, better, _ = effects(finding)
    assert (within.headline(), better.headline()) == ("unknown", "unknown")
    assert finding.verdict() == "undecided"
    assert batch_size.picture(finding).axes


def test_of_four_sizes_one_that_never_arrives_leaves_a_bound() -> None:
    late = batch_size._Seed({15: math.inf, 30: 30.0, 60: 20.0, 120: 15.0}, dict.fromkeys((15, 30, 60, 120), 50), None)
    assert math.isnan(late.factor()[0])
    apart, low, high = replace(late, noise=noise_of(60.0)).factor()
    assert math.isfinite(apart)
    assert (low, high) == (0.0, math.inf)
    assert math.isnan(replace(late, noise=noise_of(60.0)).against(60.0))


def noise_of(value: float, *, is_bound: bool = False) -> Any:
    return noise_probe.NoiseScale(value, value, value, is_bound, 1.0, value, 30)


@pytest.mark.parametrize(("value", "least"), [(600.0, 10.0), (6.0, 0.0)])
def test_a_prediction_that_is_a_bound_says_so_much_only(value: float, least: float) -> None:
    """At least 600 is at least tenfold too much; at least 6 may be right."""
    steps = {b: LEAST * (1 + CRITICAL / b) for b in SIZES}
    seed = batch_size._Seed(steps, dict.fromkeys(steps, 1000), noise_of(value, is_bound=True))
    sample, low, high = seed.factor()
    assert sample == pytest.approx(10.0, **tolerance.WHOLE_STEPS)
    assert (low, high) == (pytest.approx(least, **tolerance.WHOLE_STEPS), math.inf)


def test_gradients_without_a_signal_tell_nothing() -> None:
    finding = measured(runs_of(law(), signal=-1.0))
    assert finding.verdict() == "undecided"
    assert effects(finding)[0].headline() == "unknown"
    assert "predicts an unknown size" in finding.summary
    assert batch_size.picture(finding).axes


def test_where_the_goal_is_out_of_reach_nothing_more_is_trained() -> None:
    study = made.answered(lambda s: made.jump(s, 97 if s.placement == "none" else made.NEVER), batch_size.CLAIM)
    assert {s.batch_size for s in study.lab.outcomes} == {60}
    finding = batch_size.measure(study)
    assert finding.verdict() == "undecided"
    assert batch_size.timed(finding, {}) == []
    assert batch_size.picture(finding).axes


def test_a_best_rate_at_the_edge_is_an_obstacle() -> None:
    """At 240 the lowest rates are the best, however low; on validation rows, by which the rate is chosen."""

    def how(spec: Spec) -> Outcome:
        if spec.batch_size != 240:
            return runs_of(law())(spec)
        run, at = made.jump(spec, 10), 13 + round(2 * math.log10(spec.rate))
        return replace(run, validation=[made.HIGH if step >= at else made.LOW for step in run.steps])

    finding = measured(how)
    assert "in batches of 240, the best learning rate" in finding.effects[0].obstacle
    assert finding.verdict() == "undecided"


def test_seconds_are_those_of_the_size_advised() -> None:
    finding = measured(runs_of(law()))
    seconds = {timing.of_rows(b): 1.0 + b / 60 for b in SIZES}  # Bhalf = 60, so B* = 60
    (effect,) = batch_size.timed(finding, seconds)
    assert effect.least == effect.most == (1.0,) * 6
    assert not effect.decides
    finding.numbers["predicted"] = [1e4] * 6  # advises the largest: 13 steps of 5 s
    (wrong,) = batch_size.timed(finding, seconds)
    assert wrong.least == pytest.approx((13 * 5.0 / (20 * 2.0),) * 6, **tolerance.FEW_ROUNDINGS)


def test_the_base_size_shares_the_runs_of_speed() -> None:
    both = made.answered(runs_of(law()), speed.CLAIM, batch_size.CLAIM)
    own = {s.batch_size for s in both.lab.outcomes}
    assert own == set(SIZES)
    at_base = {s for s in both.lab.outcomes if s.batch_size == 60 and not s.probe}
    assert at_base == set(made.answered(runs_of(law()), speed.CLAIM).lab.outcomes)
    rates = {size: {s.rate for s in both.lab.outcomes if s.batch_size == size} for size in (15, 240)}
    assert rates == {15: {0.032, 0.1, 0.32}, 240: {0.32, 1.0, 3.2}}
    assert batch_size.sizes(made.study_of(Settings())) == [15, 30, 60, 120, 240]
    assert batch_size.sizes(made.study_of()) == [15, 60, 240]


@pytest.mark.parametrize(("rows", "base", "expected"), [(20, 12, []), (40, 24, [6, 12, 24]), (100, 60, [15, 30, 60])])
def test_few_rows_leave_fewer_sizes(rows: int, base: int, expected: list[int]) -> None:
    problem = Problem({"main": made.table(rows)})
    study = made.study_of(Settings(batch_size=base), problem)
    assert batch_size.sizes(study) == expected
    if not expected:
        assert batch_size.runs(study) == []
        assert batch_size.measure(study).verdict() == "not measured"


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem({"main": shipped.digits()})


def watched(problem: Problem, **choices: Any) -> tuple[torch.nn.Module, Rows, list[dict[str, Any]]]:
    spec = Spec("main", "before", "sigmoid", "minmax", "sgd", 30, 8, batch_size.PROBE, None, 0.5, 0)
    rows = Rows.of(problem.datasets["main"], [replace(spec, seed=seed, **choices) for seed in (0, 1)])
    network = base_network(64, 10, placement="before", activation="sigmoid", seeds=[0, 1], stds=[None, None])
    network = torch.nn.Sequential(torch.nn.Flatten(2), network)
    return network, rows, noise_probe.probe(network, rows, 0)


def test_the_noise_of_each_replica_is_what_it_is_alone(problem: Problem) -> None:
    network, rows, seen = watched(problem)
    count, group = len(rows.splits[0].train), 30
    alone = GroupGradients(list(network.parameters()))
    random = [np.random.default_rng([seed, 0]) for seed in (0, 1)]
    for _ in range(4):
        x, y = rows.take(
            np.stack([p.train[r.permutation(count)[:group]] for p, r in zip(rows.splits, random, strict=True)])
        )
        losses(network.train()(x), y, rows.data)[1].backward()
        alone.take()
    block = alone.block(group * (count - 1) / (count - group))
    assert block is not None
    assert seen[1]["blocks"][0] == pytest.approx(block, rel=1e-3)
    assert len(seen[1]["blocks"]) == 30


def test_stages_count_by_how_far_the_training_loss_falls() -> None:
    def look(step: int, loss: float, trained: float, noise: float) -> dict[str, Any]:
        blocks = [[1.0 + s, noise * (1.0 + s)] for s in (-HALF, HALF) for _ in range(10)]
        return {"step": step, "loss": loss, "trained": trained, "blocks": blocks}

    lagging = [look(0, 2.0, 2.0, 10.0), look(8, 3.0, 0.5, 100.0), look(16, 0.2, 0.3, 1000.0), look(33, 0.1, 0.1, 1e4)]
    found = noise_probe.predicted(0.1, lagging)
    assert found is not None
    assert found.value == pytest.approx(10.0, **tolerance.FEW_ROUNDINGS)
    assert noise_probe.predicted(0.1, [look(0, math.nan, math.nan, 10.0)]) is None


def test_watching_leaves_no_trace(problem: Problem) -> None:
    spec = Spec("main", "before", "sigmoid", "minmax", "sgd", 30, 40, "", None, 0.5, 0)
    (plain,), (seen,) = (train([replace(spec, probe=probe)], problem) for probe in ("", batch_size.PROBE))
    assert seen.test == plain.test
    assert [s["step"] for s in seen.probed] == noise_probe.stages(40)
    (again,) = train([replace(spec, probe=batch_size.PROBE)], problem)
    assert again == seen


def test_models_side_by_side_are_measured_like_one_batched(problem: Problem) -> None:
    _, rows, seen = watched(problem)
    singles = []
    for i in (0, 1):
        single = base_network(64, 10, placement="before", activation="sigmoid", seeds=[i], stds=[None])
        singles.append(torch.nn.Sequential(Unsqueeze(), torch.nn.Flatten(2), single))
    apart = noise_probe.probe(SideBySide(singles, 10), rows, 0)
    for one, other in zip(seen, apart, strict=True):
        assert (one["loss"], one["trained"]) == pytest.approx((other["loss"], other["trained"]), rel=1e-4)
        assert np.array(one["blocks"]) == pytest.approx(np.array(other["blocks"]), rel=0.01, abs=1e-3)


class Unsqueeze(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[None]


def values() -> Problem:
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    y = (3 * x[:, 0] - x[:, 1]).astype(np.float32)
    return Problem({"main": Dataset("values", "", x, y, "regression", metric="r2")})


VALUES_MODEL = """
from torch import nn
def normed():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
"""


@pytest.mark.parametrize("own", [True, False])
def test_values_and_models_of_ones_own_are_trained_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, own: bool
) -> None:
    (tmp_path / "values_module.py").write_text(VALUES_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Settings, "short_steps", property(lambda _: 60))
    monkeypatch.setattr(Settings, "steps", property(lambda _: 60))
    model = "values_module:normed" if own else None
    problem = replace(values(), model=model, own_normalizes=own)
    settings = Settings(seeds=2, quick=True, model=model, batch_size=16, hidden=(32,))
    monkeypatch.setattr(batch_size, "FEWEST_ARRIVALS", 1)
    course = Course(Study(settings, Lab(problem, tmp_path / "runs")), [batch_size.CLAIM], None)
    course.run()
    finding = course.findings["batch-size"]
    assert finding.verdict() == "undecided"  # of two seeds
    assert finding.numbers["steps"].keys() == {"4", "16", "64"}
    assert all(math.isfinite(value) and value > 0 for value in finding.numbers["predicted"])
