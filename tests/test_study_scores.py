"""Scores of several replicas at once are those that scikit-learn gives each of them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn import metrics
from torch import Tensor

import tolerance
from batchnorm.study.data import DataError, Dataset
from batchnorm.study.scores import METRICS, chosen_metric, guessing, scores

REPLICAS, ROWS = 4, 57
Oracle = Callable[[Any, Any], float]  # a replica's outputs (N, K) and targets


def drawn(classes: int, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return outputs (R, N, K) and classes (R, N), every class with some rows; tied: each row of outputs thrice."""
    random = np.random.default_rng(classes + 10 * tied)
    output = random.normal(size=(REPLICAS, ROWS, classes))
    if tied:
        output = output[:, np.arange(ROWS) // 3]
    y = np.stack([random.permutation(np.arange(ROWS) ** 2 % (2 * classes) // 2) for _ in range(REPLICAS)])
    y[:, :classes] = np.arange(classes)
    return torch.from_numpy(output).to(dtype), torch.from_numpy(y)


def by_skill(output: Any, y: Any) -> float:
    shares = np.bincount(y) / len(y)
    loss = metrics.log_loss(y, softmax(output, axis=1), labels=range(output.shape[1]))
    return 1.0 - loss / metrics.log_loss(y, np.tile(shares, (len(y), 1)), labels=range(output.shape[1]))


def by_auc(output: Any, y: Any) -> float:
    if output.shape[1] == 2:
        return metrics.roc_auc_score(y, output[:, 1] - output[:, 0])
    return metrics.roc_auc_score(y, softmax(output, axis=1), multi_class="ovr", average="macro")


ORACLES: dict[str, Oracle] = {
    "accuracy": lambda output, y: metrics.accuracy_score(y, output.argmax(1)),
    "balanced-accuracy": lambda output, y: metrics.balanced_accuracy_score(y, output.argmax(1)),
    "auc": by_auc,
    "skill": by_skill,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", ORACLES)
def test_scores_of_classes(name: str, classes: int, *, tied: bool) -> None:
    output, y = drawn(classes, tied=tied, dtype=torch.float64)
    ours = METRICS[name].score(output, y).tolist()
    theirs = [ORACLES[name](o, t) for o, t in zip(output.numpy(), y.numpy(), strict=True)]
    assert ours == pytest.approx(theirs, **tolerance.EXACT_LINE)
    assert len({round(score, 6) for score in theirs}) > 1  # replicas apart, or they could be confused


@pytest.mark.parametrize("name", ["accuracy", "auc", "skill"])
def test_scores_of_several_labels(name: str) -> None:
    random = np.random.default_rng(5)
    y = (random.random((REPLICAS, ROWS, 3)) < (0.2, 0.5, 0.7)).astype(np.float32)
    output = random.normal(size=y.shape).round(1)
    oracles: dict[str, Oracle] = {
        "accuracy": lambda o, t: 1.0 - metrics.hamming_loss(t, o > 0),
        "auc": lambda o, t: metrics.roc_auc_score(t, o, average="macro"),
        "skill": lambda o, t: 1.0 - label_loss(t, expit(o)) / label_loss(t, np.broadcast_to(t.mean(0), t.shape)),
    }
    ours = METRICS[name].score(torch.from_numpy(output), torch.from_numpy(y)).tolist()
    theirs = [oracles[name](o, t) for o, t in zip(output, y.astype(float), strict=True)]
    assert ours == pytest.approx(theirs, **tolerance.TO_ONE_IN_A_MILLION)


def label_loss(y: Any, p: Any) -> float:
    return float(np.mean([metrics.log_loss(y[:, i], p[:, i], labels=[0, 1]) for i in range(y.shape[1])]))


@pytest.mark.parametrize("targets", [(), (2,)])
def test_scores_of_values(targets: tuple[int, ...]) -> None:
    random = np.random.default_rng(6)
    y = random.normal(5.0, 3.0, size=(REPLICAS, ROWS, *targets))
    output = (y + random.normal(size=y.shape)).reshape(REPLICAS, ROWS, -1)
    ours = METRICS["r2"].score(torch.from_numpy(output), torch.from_numpy(y)).tolist()
    theirs = [metrics.r2_score(t, o.reshape(t.shape)) for o, t in zip(output, y, strict=True)]
    assert ours == pytest.approx(theirs, **tolerance.EXACT_LINE)


def test_a_replica_that_has_diverged_has_no_score_and_leaves_the_others_theirs() -> None:
    output, y = drawn(3)
    alone = scores(METRICS["auc"], output, y)
    assert all(map(math.isfinite, alone))
    for broken in (math.nan, math.inf, -math.inf):
        output[1, 4, 0] = broken
        together = scores(METRICS["auc"], output, y)
        assert math.isnan(together[1])
        assert together[:1] + together[2:] == alone[:1] + alone[2:]


def test_a_class_without_rows_does_not_count() -> None:
    output, y = drawn(3)
    output, y = output.double(), y.clamp(max=1)
    present = [metrics.roc_auc_score(y[0] == c, softmax(output[0].numpy(), axis=1)[:, c]) for c in (0, 1)]
    assert METRICS["auc"].score(output, y)[0].item() == pytest.approx(np.mean(present), **tolerance.EXACT_LINE)
    right = [(output[0].argmax(1) == y[0])[y[0] == c].double().mean().item() for c in (0, 1)]
    balanced = METRICS["balanced-accuracy"].score(output, y)[0].item()
    assert balanced == pytest.approx(np.mean(right), **tolerance.EXACT_LINE)


def data_of(counts: tuple[int, ...]) -> Dataset:
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.zeros((len(y), 1), np.float32)
    return Dataset("d", "", x, y, "classification", tuple(map(str, range(len(counts)))))


VALUES = Dataset("v", "", np.zeros((4, 1), np.float32), np.arange(4.0), "regression")
LABELS = Dataset("l", "", np.zeros((4, 1), np.float32), np.array([[0, 1], [0, 0], [1, 0], [0, 0]], float), "labels")


@pytest.mark.parametrize(
    ("data", "metric", "guess"),
    [
        (data_of((50, 50)), "accuracy", 0.5),
        (data_of((25, 75)), "accuracy", 0.75),  # half of its even share is still about even
        (data_of((24, 76)), "auc", 0.5),
        (data_of((6, 94)), "auc", 0.5),
        (data_of((10, 10, 10)), "accuracy", 1 / 3),
        (data_of((90, 8, 2)), "balanced-accuracy", 1 / 3),
        (VALUES, "r2", 0.0),
        (LABELS, "auc", 0.5),
    ],
)
def test_the_score_suits_the_data_and_guessing_is_what_it_gives_without_inputs(
    data: Dataset, metric: str, guess: float
) -> None:
    assert chosen_metric(None, data).id == metric
    assert guessing(METRICS[metric], data) == pytest.approx(guess, **tolerance.FEW_ROUNDINGS)


@pytest.mark.parametrize("name", ["accuracy", "balanced-accuracy", "auc", "skill"])
def test_the_same_output_for_every_row_scores_what_guessing_does(name: str) -> None:
    data = data_of((10, 30, 60))
    shares = torch.tensor([0.1, 0.3, 0.6]).log().double()
    output = shares.expand(1, 100, 3)
    score = METRICS[name].score(output, torch.from_numpy(data.y)[None]).item()
    assert score == pytest.approx(guessing(METRICS[name], data), **tolerance.OF_SCORES)


def test_guessing_several_labels() -> None:
    assert guessing(METRICS["accuracy"], LABELS) == pytest.approx(0.75, **tolerance.FEW_ROUNDINGS)
    assert guessing(METRICS["skill"], LABELS) == 0.0


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("f1", data_of((5, 5)), "no metric 'f1'; there are: accuracy, balanced-accuracy, auc, skill, r2"),
        ("r2", data_of((5, 5)), "--metric r2 does not suit classification; these do: accuracy"),
        ("accuracy", VALUES, "--metric accuracy does not suit regression; these do: r2$"),
        ("balanced-accuracy", LABELS, "does not suit labels; these do: accuracy, auc, skill"),
    ],
)
def test_a_metric_that_does_not_suit_is_an_error(name: str, data: Dataset, match: str) -> None:
    with pytest.raises(DataError, match=match):
        chosen_metric(name, data)


def test_a_metric_of_ones_own_choice() -> None:
    assert chosen_metric("skill", data_of((5, 5))) is METRICS["skill"]
