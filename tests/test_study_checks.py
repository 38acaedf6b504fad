"""Checks of the layer: what passes, and that they can fail."""

import math
from typing import Any

import pytest
import torch

import study_outcomes as made
import tolerance
from batchnorm.study.claims import scale_shift, train_predict
from batchnorm.study.design import Study
from batchnorm.study.findings import Finding
from batchnorm.study.optimizers import OPTIMIZERS
from batchnorm.study.training import Outcome, Problem, Spec, evaluated_steps, train

SEEDS = 3


def probed(claim: Any, look: Any, problem: Problem = made.PROBLEM) -> tuple[Study, Finding]:
    """Measure a check on runs of which `look(spec, step)` was seen at each evaluated step."""

    def how(spec: Spec) -> Outcome:
        steps = evaluated_steps(spec.steps)
        scores = [made.HIGH] * len(steps)
        return Outcome(steps, scores, scores, [{"step": step, **look(spec, step)} for step in steps])

    study = made.answered(how, claim.CLAIM, settings=made.Quick(seeds=SEEDS), problem=problem)
    return study, claim.CLAIM.measure(study).scheduled(study.settings.schedule, check=claim.CLAIM.check)


def modes(alone: float = 1e-7, gap: float = 0.3, late: float = 0.0) -> Any:
    """Return what the probe of training and prediction saw; `late` is the difference of the scores in the end."""

    def look(spec: Spec, step: int) -> dict[str, Any]:
        early = 0.4 if step < spec.steps / 2 else late  # running statistics lag at first
        seen: dict[str, Any] = {"lag": early, "train score": 0.9, "predict score": 0.9 - early}
        if step == spec.steps:
            sizes = {str(m): gap / m for m in (2, 16, 64, 128)}
            seen |= {"alone": alone, "gap": sizes, "score": dict.fromkeys(sizes, 0.9)}
        return seen

    return look


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (modes(gap=0.9), "passes"),
        (modes(gap=0.9, alone=0.1), "fails"),  # prediction depends on the batch
        (modes(gap=0.0), "fails"),  # training does not
        (modes(gap=0.9, late=0.1), "passes"),  # how far statistics lag depends on the data, and stands beside
        (modes(gap=0.9, alone=math.nan), "fails"),
    ],
)
def test_training_and_prediction(seen: Any, verdict: str) -> None:
    _, finding = probed(train_predict, seen)
    assert finding.verdict() == verdict
    assert train_predict.CLAIM.check
    assert train_predict.CLAIM.picture(finding).axes


def test_the_gap_is_read_at_the_size_of_the_studys_batches() -> None:
    _, finding = probed(train_predict, modes(gap=0.9))
    (depends,) = [e for e in finding.effects if "companions" in e.name]
    assert depends.least == (0.9 / 16,) * SEEDS  # the largest of the sizes up to 60
    assert "16 a batch" in depends.name
    assert "by 45% of their spread in batches of 2 and 6% in batches of 16" in finding.summary


def test_a_network_that_was_trained_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two classes that one feature tells, with runs of 20 steps."""
    monkeypatch.setattr(made.Quick, "short_steps", property(lambda _: 20))
    data = made.table()
    data.x[:, 0] += 3 * data.y
    problem = Problem({"main": data})
    study = made.study_of(made.Quick(seeds=2), problem)
    (unit,) = train_predict.CLAIM.runs(study)
    study.lab.outcomes.update(zip(unit, train(unit, problem), strict=True))
    alone, depends, _ = train_predict.CLAIM.measure(study).effects
    assert max(alone.most) < train_predict.SAME
    assert min(depends.least) > train_predict.DEPENDS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scale_and_shift_recover_the_identity(optimizer: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 60, 8) * torch.linspace(0.3, 3.0, 8) + torch.linspace(-2.0, 2.0, 8)
    assert max(scale_shift.recovered(x, optimizer)) < scale_shift.UNDONE


def moved(by: float) -> Any:
    def look(_: Spec, step: int) -> dict[str, Any]:
        weight, bias = [1.0 - by, 1.0, 1.0 + by], [-by, 0.0, by]
        return {"weight": weight, "bias": bias, "weight moved": by if step else 0.0, "bias moved": by}

    return look


@pytest.mark.parametrize(("by", "verdict"), [(0.05, "passes"), (0.0, "fails"), (math.nan, "fails")])
def test_scale_and_shift_must_move(by: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_shift, "recovered", lambda x, _: [1e-4] * len(x))
    _, finding = probed(scale_shift, moved(by))
    assert finding.verdict() == verdict
    assert scale_shift.CLAIM.picture(finding).axes


def test_an_optimizer_that_recovers_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_shift, "recovered", lambda x, name: [0.5 if name == "adam" else 1e-4] * len(x))
    _, finding = probed(scale_shift, moved(0.05))
    assert finding.verdict() == "fails"
    assert finding.effects[0].least == pytest.approx((0.5,) * SEEDS, **tolerance.EXACT_LINE)
