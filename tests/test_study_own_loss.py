"""A loss of the user's own: how it is called, the score that follows from it, and what it may not be."""

import math
import re
from dataclasses import replace

import pytest
import torch

import own_models
import tolerance
from batchnorm.study import own_loss, training
from batchnorm.study.data import DataError
from batchnorm.study.training import Rows
from own_studies import prepared, trained


@pytest.mark.parametrize("loss", ["torch.nn.functional:cross_entropy", "torch.nn:CrossEntropyLoss"])
def test_a_function_and_a_factory_of_a_loss_are_the_same(loss: str) -> None:
    problem, spec = prepared("binary", "mlp", loss)
    assert problem.datasets["main"].metric == "accuracy"
    assert trained(problem, spec) == trained(prepared("binary", "mlp")[0], spec)


def test_a_loss_of_one_logit_gets_targets_as_floats() -> None:
    problem, spec = prepared("binary", "OneLogit", "torch.nn:BCEWithLogitsLoss")
    loss = problem.datasets["main"].loss
    assert loss == own_loss.OwnLoss("torch.nn:BCEWithLogitsLoss", 2, "logit")
    rows = Rows.of(problem.datasets["main"], [spec])
    output = torch.randn(1, 60, 2, generator=torch.Generator().manual_seed(0))
    _, y = next(rows.batches())
    plain = replace(rows.data, loss=None)
    tolerance.assert_close(training.losses(output, y, rows.data), training.losses(output, y, plain), "float32")


def test_targets_come_to_a_loss_in_their_own_unit() -> None:
    problem, spec = prepared("values", "mlp", "torch.nn:HuberLoss")
    rows = Rows.of(problem.datasets["main"], [replace(spec, label_noise=0.5)])
    _, y = rows.part("test")
    assert torch.equal(y[0], torch.from_numpy(rows.data.y[rows.splits[0].test]).float())
    _, noisy = rows.part("train")
    added = noisy[0] - torch.from_numpy(rows.data.y[rows.splits[0].train])
    assert 0.3 < (added != 0).float().mean() < 0.7
    assert 10.0 < added[added != 0].std() < 40.0  # y spreads by 20
    output = y[..., None] + 3.0  # beyond 1, the loss is the distance less a half
    tolerance.assert_close(training.losses(output, y, rows.data), torch.tensor([2.5]), "float32", 100.0)
    assert rows.data.metric == "r2"
    trained(problem, replace(spec, rate=0.5))


def test_where_no_score_suits_the_outputs_the_loss_is_the_score() -> None:
    problem, spec = prepared("values", "two_outputs", "gaussian")
    data = problem.datasets["main"]
    assert (data.metric, data.outputs) == ("loss", 2)
    assert data.loss is not None
    mean, log_variance = data.loss.constant
    tolerance.assert_same_to_project_bound(mean / data.y.mean(), 1.0)
    assert math.exp(log_variance / 2.0) == pytest.approx(data.y.std(), rel=1e-2)
    y = torch.from_numpy(data.y)[None].float()
    constant = torch.tensor(data.loss.constant).expand(1, y.shape[1], 2)
    certain = torch.stack([y, torch.zeros_like(y)], dim=-1)  # the right mean, and a variance of 1: a loss of 0
    assert training.scores(constant, y, data) == [0.0]
    assert training.scores(certain, y, data) == [1.0]
    assert math.isnan(training.scores(certain * math.nan, y, data)[0])
    trained(problem, replace(spec, rate=1e-6))
    with pytest.raises(DataError, match="--metric r2 needs a model with 1 outputs, `--model own_models:two_outputs`"):
        prepared("values", "two_outputs", "gaussian", "r2")


def test_the_loss_can_be_asked_for_as_the_score() -> None:
    data = prepared("binary", "mlp", "torch.nn:CrossEntropyLoss", "loss")[0].datasets["main"]
    output, y = torch.randn(1, own_models.ROWS, 2), torch.from_numpy(data.y)[None]
    skill = training.scores(output, y, replace(data, metric="skill"))
    assert training.scores(output, y, data) == pytest.approx(skill, abs=1e-4)
    with pytest.raises(DataError, match="--metric loss does not suit classification"):
        prepared("binary", "mlp", None, "loss")


BAD_LOSSES = {
    "no_such": "`--loss own_models:no_such` cannot be imported: AttributeError",
    "three": "`--loss own_models:three` must be a function (output, target) → loss, or return one, got 3",
    "exits": "`--loss own_models:exits` failed: it called sys.exit(3)",
    "unreduced": "`--loss own_models:unreduced` must return the mean loss, one number in a tensor, got shape (4,)",
    "item": "must return the mean loss, one number in a tensor, got float",
    "without_gradient": "returns a loss without a gradient: compute it by torch",
    "raising": "does not take outputs (4, 2) and targets (4,): KeyError: 'target'",
    "torch.nn:CTCLoss": "`--loss torch.nn:CTCLoss` does not take outputs (4, 2) and targets (4,)",
}


@pytest.mark.parametrize("loss", BAD_LOSSES)
def test_what_a_loss_may_not_do(loss: str) -> None:
    with pytest.raises(ValueError, match=re.escape(BAD_LOSSES[loss])) as caught:
        prepared("binary", "mlp", loss)
    assert "\n" not in str(caught.value)
