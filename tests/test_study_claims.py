"""Claims measured on outcomes made by hand: what each must say is known before."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tolerance
from batchnorm.study import answer, design, lab, runner
from batchnorm.study.claims import initialization, input_scaling, learning_rate, placement, regularization, speed
from batchnorm.study.design import Settings, Study
from batchnorm.study.networks import base_network
from batchnorm.study.training import Outcome, Problem, Rows, Spec, evaluated_steps
from batchnorm.torch import BatchNorm

Arrival = Callable[[Spec], float]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return runner.prepare(Settings(seeds=3, quick=True), None)


def study_of(problem: Problem, tmp_path: Path, arrival: Arrival) -> Study:
    """A study whose every run stands at 0.1 and jumps to 0.99 at the step that `arrival` names."""
    study = Study(Settings(seeds=3, quick=True), lab.Lab(problem, tmp_path, jobs=1, resume=True))
    claims = (speed.runs, initialization.runs, placement.runs, input_scaling.runs)
    for ask in (*claims, initialization.further):
        for spec in ask(study):
            steps = evaluated_steps(spec.steps)
            scores = [0.99 if at >= arrival(spec) else 0.1 for at in steps]
            study.lab.outcomes[spec] = Outcome(steps, scores, list(scores))
    return study


def four_times_faster(spec: Spec) -> float:
    """With it at step 10, without at 40; one rate works without, three with; small stds fail without."""
    with_it = spec.placement in ("before", "after")
    rates = (0.1, 1.0, 10.0) if with_it else (1.0,)
    usable = spec.rate in rates or spec.activation == "relu" or spec.data == "scales"
    if not usable or (spec.std is not None and spec.std < 0.1 and not with_it):
        return math.inf
    return {"none": 40, "before": 10, "after": 20, "first": 10}[spec.placement]


def test_speed_is_steps_without_by_steps_with(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path, four_times_faster)
    found = speed.measure(study)
    without, with_it = (next(s for s in evaluated_steps(250) if s >= step) for step in (40, 10))
    assert found.effects[1].samples == (without / with_it,) * 3
    assert found.verdict() == "holds"
    assert found.numbers["rates"] == {"none": 1.0, "before": 0.1}
    timed = speed.timed(found, {"none": 1.0, "before": 2.0})
    assert timed[1].samples == (without / with_it / 2.0,) * 3
    assert "seconds" in timed[1].name


def test_learning_rates_that_work_are_counted(problem: Problem, tmp_path: Path) -> None:
    found = learning_rate.measure(study_of(problem, tmp_path, four_times_faster))
    assert found.numbers["usable"] == {"none": [1.0], "before": [0.1, 1.0, 10.0]}
    assert found.effects[0].samples == (2.0, 2.0, 2.0)
    assert found.effects[1].samples == (1.0, 1.0, 1.0)


def test_initial_stds_that_work_are_counted(problem: Problem, tmp_path: Path) -> None:
    found = initialization.measure(study_of(problem, tmp_path, four_times_faster))
    assert found.numbers["share"]["sigmoid none"] == [3 / 5] * 3
    assert found.numbers["share"]["sigmoid before"] == [1.0] * 3
    assert found.effects[0].samples == pytest.approx((2 / 5,) * 3, **tolerance.FEW_ROUNDINGS)


def test_placement_is_steps_after_by_steps_before(problem: Problem, tmp_path: Path) -> None:
    found = placement.measure(study_of(problem, tmp_path, four_times_faster))
    assert found.verdict() == "holds"
    assert all(ratio > 1.5 for effect in found.effects if effect.decides for ratio in effect.samples)
    reverse = {"before": "after", "after": "before"}
    swapped = study_of(
        problem,
        tmp_path,
        lambda s: four_times_faster(design.replace(s, placement=reverse.get(s.placement, s.placement))),
    )
    assert placement.measure(swapped).verdict() == "does not hold"


def test_scaled_inputs_are_compared_with_raw_ones(problem: Problem, tmp_path: Path) -> None:
    steps = {"raw": 44, "minmax": 20, "standard": 10}
    found = input_scaling.measure(
        study_of(problem, tmp_path, lambda s: 10 if s.placement == "first" else steps[s.scaling])
    )
    assert found.verdict() == "holds"
    assert found.numbers["data"] == "breast cancer"
    assert found.effects[0].samples[0] > 2.0
    assert found.effects[1].samples == (1.0,) * 3


@pytest.mark.parametrize(
    ("small", "power", "verdict"),
    [
        (0.2, -1.0, "holds"),
        (0.8, -1.0, "does not hold"),
        (math.nan, -1.0, "does not hold"),
        (0.2, -0.5, "does not hold"),
        (0.2, -1.5, "does not hold"),
        (0.2, math.nan, "does not hold"),
    ],
)
def test_regularization_is_the_loss_in_small_batches_by_that_in_whole_ones(
    problem: Problem, tmp_path: Path, small: float, power: float, verdict: str
) -> None:
    study = Study(Settings(seeds=3, quick=True), lab.Lab(problem, tmp_path, jobs=1, resume=True))
    noise = {q: {str(m): 0.7 * m**power for m in regularization.SIZES} for q in regularization.QUANTITIES}
    for spec in regularization.runs(study):
        loss = small if spec.virtual_batch_size == 4 else 0.4
        seen = {"recalibrated": loss, "running": loss + 1, "train": 0.4 if spec.virtual_batch_size == 4 else 0.2}
        study.lab.outcomes[spec] = Outcome([spec.steps], [0.9], [0.9], [seen | noise | {"layers": [1.0] * 3}])
    found = regularization.measure(study)
    assert found.verdict() == verdict
    *slopes, test, training = found.effects
    distance = 1.0 if math.isnan(power) else abs(power + 1.0)  # no variance at all obeys no law
    assert all(e.samples == pytest.approx((distance,) * 3, abs=1e-9) for e in slopes)
    worst = math.log(10)  # a run that has diverged counts as one that guesses
    ratio = worst / 0.4 if math.isnan(small) else small / 0.4
    assert test.samples == pytest.approx((ratio,) * 3, **tolerance.FEW_ROUNDINGS)
    assert training.samples == (2.0,) * 3
    assert not training.decides


def test_batches_that_hold_no_two_virtual_ones_are_not_split(problem: Problem, tmp_path: Path) -> None:
    whole = [Study(Settings(batch_size=b), lab.Lab(problem, tmp_path, jobs=1, resume=True)) for b in (7, 8, 60)]
    assert [regularization.virtual_batches(study) for study in whole] == [[], [2, 4], [2, 4, 15, 30]]
    assert regularization.runs(whole[0]) == []
    assert regularization.measure(whole[0]).verdict() == "not measured"


def test_recalibrated_statistics_are_those_of_all_rows() -> None:
    network = base_network(
        5, 3, placement="before", activation="sigmoid", seeds=[0, 1], stds=[None, 1.0], virtual_batch_size=4
    )
    layers = [m for m in network if isinstance(m, BatchNorm)]
    x, other = torch.randn(2, 50, 5) * 3 + 1, torch.randn(2, 7, 5)
    network(x)
    before = [(b.clone(), b) for layer in layers for b in layer.buffers()]
    (got,) = regularization.recalibrated(network, x, other)
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


def test_noise_is_that_of_the_groups_the_layer_normalises_by(problem: Problem) -> None:
    layer = BatchNorm((2, 1, 3), axis=(0, 2))
    x = torch.randn(2, 12, 3) * 2 + 1
    with regularization._training(layer, 4) as layers, regularization._moments(layers, 3) as (found,):
        y = layer(x)
    ((mean, var),) = found
    normalised = (x.unflatten(1, (4, 3)) - mean[:, None]) / torch.sqrt(var[:, None] + layer.eps)
    tolerance.assert_close(y, normalised.flatten(1, 2), "float32", y.abs().max().item())
    spec = Study(Settings(), lab.Lab(problem, Path(), jobs=1, resume=True)).spec()
    rows = Rows.of(problem.datasets["main"], [spec])
    network = base_network(64, 10, placement="before", activation="sigmoid", seeds=[0], stds=[None])
    (seen,) = regularization.noise(network, rows)
    assert seen["layers"][0] == pytest.approx(1.0, rel=0.1)  # of independent rows Var(μ_B) = σ²/m


def test_the_rate_is_chosen_on_validation_and_reported_on_test(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path, four_times_faster)
    for spec in study.sweep("before"):
        better = spec.rate == 10.0
        study.lab.outcomes[spec] = Outcome(
            [0, 5, 9], [0.1, 0.99 if better else 0.1, 0.99], [0.1, 0.1 if better else 0.99, 0.99]
        )
    rate, outcomes = study.best(study.sweep("before"))
    assert rate == 10.0
    assert study.steps(outcomes) == [9.0] * 3


def test_of_equal_steps_the_higher_score_wins(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path, four_times_faster)
    for spec in study.sweep("before"):
        study.lab.outcomes[spec] = Outcome([0, 5], [0.1, 0.96 + spec.rate / 1e4], [0.1, 0.96])
    assert study.best(study.sweep("before"))[0] == max(study.settings.rates("sigmoid"))


@pytest.mark.parametrize(
    ("arrival", "first", "placed"),
    [
        (four_times_faster, "Yes: on digits", "before"),
        (lambda s: 10.0 if s.placement == "none" else 44.0, "No: on digits", "none"),
        (lambda s: 20.0 + 8 * s.seed if s.placement == "none" else 20.0, "Undecided: on digits", "before"),
        (lambda _: math.inf, "Undecided: on digits", None),
    ],
)
def test_the_answer_says_what_was_found(
    problem: Problem, tmp_path: Path, arrival: Arrival, first: str, placed: str | None
) -> None:
    study = study_of(problem, tmp_path, arrival)
    findings = {c.CLAIM.id: c.measure(study) for c in (speed, learning_rate, placement)}
    setting = answer.recommend(study, findings)
    said = answer.sentences(study, findings, setting)
    assert said[0].startswith(first)
    if placed is None:
        assert setting is None
        assert "No setting is recommended" in said[2]
        assert answer.code(study, setting) == {}
    else:
        assert setting is not None
        assert setting.placement == placed
        code = answer.code(study, setting)
        assert code["PyTorch"].startswith("# inputs scaled to [0, 1], batches of 60")
        assert ("momentum=0.9, epsilon=1e-5" in code["Keras"]) == (placed != "none")


def test_recommended_code_runs(problem: Problem, tmp_path: Path) -> None:
    study = study_of(problem, tmp_path, four_times_faster)
    names: dict[str, object] = {}
    setting = answer.recommend(study, {"speed": speed.measure(study)})
    exec(answer.code(study, setting)["PyTorch"], names)
    x, _ = next(Rows.of(study.data, [study.spec()]).batches())
    assert names["model"](x[0]).shape == (60, 10)


def test_scaling_is_learned_from_training_rows_only(problem: Problem) -> None:
    digits = problem.datasets["main"]
    changed = design.replace(digits, x=digits.x.copy())
    spec = Study(Settings(), lab.Lab(problem, Path(), jobs=1, resume=True)).spec()
    rows = Rows.of(digits, [spec])
    changed.x[rows.splits[0].test] += 1000.0
    again = Rows.of(changed, [spec])
    assert np.array_equal(rows.factor, again.factor)
    assert np.array_equal(rows.shift, again.shift)


def test_an_epoch_visits_no_row_twice(problem: Problem) -> None:
    digits = problem.datasets["main"]
    numbered = design.replace(digits, x=np.arange(len(digits.x), dtype=np.float32)[:, None])
    spec = Study(Settings(), lab.Lab(problem, Path(), jobs=1, resume=True)).spec(scaling="raw")
    batches = Rows.of(numbered, [spec]).batches()
    seen = np.concatenate([next(batches)[0].numpy().ravel() for _ in range(17)])
    assert len(set(seen)) == len(seen) == 17 * 60
