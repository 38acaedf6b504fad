"""The claim on the batch size, on steps and gradients that are known before."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tolerance
from batchnorm.batch_size.gradient_noise import GroupGradients
from batchnorm.cli import app
from batchnorm.study import answer, lab, noise_probe, runner, timing
from batchnorm.study.claims import all_claims, batch_size, speed
from batchnorm.study.design import Settings, Study
from batchnorm.study.findings import VAST
from batchnorm.study.networks import base_network
from batchnorm.study.own_model import SideBySide
from batchnorm.study.training import Outcome, Problem, Rows, Spec, losses, train

TABLE = Path(__file__).parents[1] / "examples" / "placements.csv"
LEAST, CRITICAL = 10.0, 60.0
HALF = 0.5  # of a block's numbers, so that there is a spread


@pytest.fixture(scope="module")
def problem() -> Problem:
    return runner.prepare(Settings(seeds=3, quick=True), None)


def law(spec: Spec) -> float:
    return math.ceil(LEAST * (1 + CRITICAL / spec.batch_size))


def study_of(
    problem: Problem,
    tmp_path: Path,
    arrival: Callable[[Spec], float] = law,
    *,
    noise: float = CRITICAL,
    signal: float = 1.0,
) -> Study:
    """A study whose every run arrives at the very step that `arrival` names, and whose gradients have a noise scale."""
    study = Study(Settings(seeds=3, quick=True), lab.Lab(problem, tmp_path, jobs=1, resume=True))
    for ask in (speed.runs, batch_size.runs, batch_size.further, batch_size.further):  # by what is there already
        for spec in ask(study):
            at = arrival(spec)
            steps = sorted({0, spec.steps} | ({int(at)} if at <= spec.steps else set()))
            scores = [0.99 if step >= at else 0.1 for step in steps]
            blocks = [[signal * (1 + s), noise * (1 + s)] for s in (-HALF, HALF) for _ in range(10)]
            seen = [{"step": at, "loss": 2.0 - at, "trained": 2.0 - at, "blocks": blocks} for at in (0, 1)]
            study.lab.outcomes[spec] = Outcome(steps, scores, list(scores), seen if spec.probe else [])
    return study


@pytest.mark.parametrize("critical", [5.0, 60.0, 700.0])
def test_the_fit_recovers_a_known_law(critical: float) -> None:
    found = batch_size.fitted({b: 30 * (1 + critical / b) for b in (8, 15, 30, 60, 120, 240, 480)})
    assert found.critical == pytest.approx(critical, rel=0.01)
    assert found.least == pytest.approx(30, rel=0.01)
    assert not found.end
    uneven = {8: 1.3, 15: 0.8, 30: 1.1, 60: 0.9, 120: 1.1, 240: 0.9}
    noisy = batch_size.fitted({b: 30 * (1 + critical / b) * by for b, by in uneven.items()})
    assert 1 / 2 < noisy.critical / critical < 2


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_steps_without_a_bend_have_no_critical_size_within_reach(power: float) -> None:
    found = batch_size.fitted({b: 1000.0 * b**power for b in (15, 60, 240)})
    assert found.end
    assert found.critical == pytest.approx(1.5 if power == 0.0 else 2400.0, **tolerance.FEW_ROUNDINGS)


def test_the_claim_is_found_after_that_on_learning_rates() -> None:
    ids = list(all_claims())
    assert ids.index("batch-size") == ids.index("learning-rate") + 1


def test_it_holds_where_the_noise_tells_what_the_steps_say(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path)
    found = batch_size.measure(study)
    assert found.verdict() == "holds"
    assert found.numbers["steps"] == {"15": [50.0] * 3, "60": [20.0] * 3, "240": [13.0] * 3}
    assert found.numbers["predicted"] == pytest.approx([CRITICAL] * 3, **tolerance.FEW_ROUNDINGS)
    assert found.numbers["fitted"] == pytest.approx([CRITICAL] * 3, rel=0.1)
    assert batch_size.picture(found).axes[0].get_legend() is not None


@pytest.mark.parametrize("apart", [0.1, 10.0])
def test_it_does_not_hold_where_the_noise_says_another_size(problem: Problem, tmp_path: Path, apart: float) -> None:
    found = batch_size.measure(study_of(problem, tmp_path, noise=apart * CRITICAL))
    assert found.verdict() == "does not hold"
    assert found.effects[0].samples == pytest.approx((10.0,) * 3, rel=0.1)


def test_steps_that_do_not_depend_on_the_size_do_not_hold(problem: Problem, tmp_path: Path) -> None:
    found = batch_size.measure(study_of(problem, tmp_path, lambda _: 20.0))
    assert found.verdict() == "does not hold"
    assert found.effects[0].most == (VAST,) * 3


def test_a_run_that_never_arrives_is_a_bound(problem: Problem, tmp_path: Path) -> None:
    found = batch_size.measure(study_of(problem, tmp_path, lambda s: law(s) if s.batch_size < 240 else math.inf))
    assert found.verdict() == "undecided"
    assert all(map(math.isnan, found.effects[0].samples))  # two sizes make no law
    late = batch_size._Seed({15: math.inf, 30: 30.0, 60: 20.0, 120: 15.0}, dict.fromkeys((15, 30, 60, 120), 50), None)
    assert all(map(math.isnan, late.factor()))
    _, low, high = replace(late, noise=noise_of(60.0)).factor()
    assert (low, high) == (1.0, VAST)


def noise_of(value: float, *, is_bound: bool = False) -> Any:
    return noise_probe.NoiseScale(value, value, value, is_bound, 1.0, value, 30)


@pytest.mark.parametrize(("value", "least"), [(600.0, 10.0), (6.0, 1.0)])
def test_a_prediction_that_is_a_bound_says_so_much_only(value: float, least: float) -> None:
    steps = {b: LEAST * (1 + CRITICAL / b) for b in (15, 60, 240)}
    seed = batch_size._Seed(steps, dict.fromkeys(steps, 1000), noise_of(value, is_bound=True))
    sample, low, high = seed.factor()
    assert sample == pytest.approx(10.0, rel=0.02)
    assert (low, high) == (pytest.approx(least, rel=0.02), VAST)


def test_gradients_without_a_signal_tell_nothing(problem: Problem, tmp_path: Path) -> None:
    found = batch_size.measure(study_of(problem, tmp_path, signal=-1.0))
    assert found.verdict() == "undecided"
    assert batch_size.picture(found).axes


def test_where_the_goal_is_out_of_reach_nothing_more_is_trained(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path, lambda _: math.inf)
    assert batch_size.further(study) == []
    found = batch_size.measure(study)
    assert found.verdict() == "undecided"
    assert len(found.effects[0].samples) == 3
    assert batch_size.timed(found, {}) == []
    assert batch_size.picture(found).axes


def test_seconds_are_those_of_the_size_advised(problem: Problem, tmp_path: Path) -> None:
    found = batch_size.measure(study_of(problem, tmp_path))
    seconds = {timing.of_rows(b): 1.0 + b / 60 for b in (15, 60, 240)}  # Bhalf = 60, so B* = 60
    (effect,) = batch_size.timed(found, seconds)
    assert effect.samples == (1.0,) * 3
    assert not effect.decides
    found.numbers["predicted"] = [1e4] * 3  # advises the largest: 13 steps of 5 s
    (wrong,) = batch_size.timed(found, seconds)
    assert wrong.samples == pytest.approx((13 * 5.0 / (20 * 2.0),) * 3, **tolerance.FEW_ROUNDINGS)


def test_the_base_size_shares_the_runs_of_speed(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path)
    assert set(batch_size.runs(study)) <= set(speed.runs(study))
    full = Study(Settings(), lab.Lab(problem, tmp_path, jobs=1, resume=True))
    assert batch_size.sizes(full) == [8, 15, 30, 60, 120, 240, 480]
    assert batch_size.sizes(study) == [15, 60, 240]
    near = {size: {s.rate for s in batch_size._near(study, size)} for size in (15, 60, 240)}
    best, _ = study.best(speed.runs(study)[len(speed.runs(study)) // 2 :])
    assert all(best in rates and len(rates) == 3 for rates in near.values())


@pytest.mark.parametrize(("rows", "expected"), [(20, []), (40, [6, 12, 24]), (100, [8, 15, 30, 60])])
def test_few_rows_leave_fewer_sizes(problem: Problem, tmp_path: Path, rows: int, expected: list[int]) -> None:
    digits = problem.datasets["main"]
    few = replace(digits, x=digits.x[:rows], y=np.arange(rows) % 2, classes=("0", "1"))
    settings = runner.fitting(Settings(), replace(problem, datasets={"main": few}))
    study = Study(settings, lab.Lab(replace(problem, datasets={"main": few}), tmp_path, jobs=1, resume=True))
    assert batch_size.sizes(study) == expected
    if not expected:
        assert batch_size.runs(study) == batch_size.further(study) == []
        assert batch_size.measure(study).verdict() == "not measured"


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


def test_the_answer_says_which_sizes_were_tried(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path)
    findings = {"speed": speed.measure(study), "batch-size": batch_size.measure(study)}
    setting = answer.Recommendation("before", "sigmoid", 1.0)
    words = "15 to 240, 240 took the fewest steps, 13 instead of 20."
    assert answer.sentences(study, findings, setting)[2].endswith(f"batches of 60; of the 3 sizes tried, {words}")
    elsewhere = answer.sentences(study, findings, replace(setting, placement="none"))[2]
    assert elsewhere.endswith(f"of the 3 sizes tried with it before the activation, {words}")
    findings["batch-size"].numbers["steps"]["60"] = [5.0] * 3
    assert answer.sentences(study, findings, setting)[2].endswith("15 to 240, none took fewer steps.")
    alone = answer.sentences(study, {"speed": findings["speed"]}, setting)[2]
    assert alone.endswith("the one size that was tried.")


VALUES = """
import numpy as np
from torch import nn
def data():
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    return x, 3 * x[:, 0] - x[:, 1]
def normed():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
"""


@pytest.mark.parametrize("own", [True, False])
def test_tables_values_and_models_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, own: bool) -> None:
    (tmp_path / "values_module.py").write_text(VALUES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = ["--data", "values_module:data", "--model", "values_module:normed"] if own else [TABLE, "--target", "placed"]
    options = ["--claims", "batch-size", "--quick", "--jobs", "1", "--batch-size", 16]
    result = CliRunner().invoke(app, ["study", *map(str, [*data, *options])])
    assert result.exit_code == 0, result.stderr
    found: Mapping[str, Any] = json.loads((tmp_path / "report" / "results.json").read_text())["claims"][0]
    assert found["verdict"] != "not measured"
    assert found["numbers"]["steps"].keys() == {"4", "16", "64"}
    timings = json.loads((tmp_path / "report" / "timings.json").read_text())
    assert {timing.of_rows(size) for size in (4, 16, 64)} <= timings["step_seconds"].keys()
    assert len(timings["effects"]["batch-size"]) == 1
