"""How good predictions are: scores that suit the task, higher is better, for all replicas at once.

| metric | formula | guessing scores |
|---|---|---|
| accuracy | share of rows whose class is right | the share of the commonest class |
| balanced-accuracy | that share class by class, averaged over the classes | 1/K |
| auc | P(a row of the class is ranked above another), averaged over classes or labels | 0.5 |
| skill | 1 − cross-entropy ÷ cross-entropy of the class frequencies | 0 |
| r2 | 1 − Σ(y − ŷ)² ÷ Σ(y − ȳ)² | 0 |
| loss | 1 − loss ÷ loss of the best constant output, for a loss of the user's own | 0 |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from batchnorm.study.data import DataError, Dataset

UNEVEN = 0.5  # a class with less than half of its even share makes accuracy a poor measure
Score = Callable[[Tensor, Tensor], Tensor]  # outputs (R, N, K) and targets (R, N, …) → (R,)


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Return the share of rows whose class is right; of labels, where a row has several."""
    if y.is_floating_point():
        return ((output > 0) == (y > 0.5)).double().flatten(1).mean(1)
    return (output.argmax(-1) == y).double().flatten(1).mean(1)


def balanced_accuracy(output: Tensor, y: Tensor) -> Tensor:
    """Return the mean over classes of the share of a class's rows that are told; classes without rows do not count."""
    truth = one_hot(y, output.shape[-1]).double()
    right = (output.argmax(-1) == y).double()[..., None] * truth
    rows = truth.sum(1)
    return (right.sum(1) / rows.clamp(min=1)).sum(-1) / (rows > 0).sum(-1)


def auc(output: Tensor, y: Tensor) -> Tensor:
    """Return the area under the ROC curve: each class against the others, averaged; label by label with several."""
    truth = y.double() if y.is_floating_point() else one_hot(y, output.shape[-1]).double()
    ranked = output.double()
    if not y.is_floating_point():
        ranked = ranked.log_softmax(-1)
        if output.shape[-1] == 2:
            ranked, truth = (output[..., 1:] - output[..., :1]).double(), truth[..., 1:]
    ordered = ranked.transpose(1, 2).contiguous()  # (R, K, N)
    values = ordered.sort(-1).values
    below = torch.searchsorted(values, ordered).double()
    upto = torch.searchsorted(values, ordered, right=True).double()
    rank = (below + upto + 1) / 2  # ties share their mean rank
    mine = truth.transpose(1, 2)
    positives, negatives = mine.sum(-1), (1 - mine).sum(-1)
    area = ((rank * mine).sum(-1) - positives * (positives + 1) / 2) / (positives * negatives).clamp(min=1)
    counts = (positives > 0) & (negatives > 0)
    return (area * counts).sum(-1) / counts.sum(-1)


def skill(output: Tensor, y: Tensor) -> Tensor:
    """Return 1 − cross-entropy ÷ that of predicting the frequencies of the classes."""
    if y.is_floating_point():
        loss = binary_cross_entropy_with_logits(output.double(), y.double(), reduction="none").mean((1, 2))
        share = y.double().mean(1)
        guess = (torch.special.entr(share) + torch.special.entr(1 - share)).mean(-1)
    else:
        losses = cross_entropy(output.double().flatten(0, 1), y.flatten(), reduction="none")
        loss = losses.reshape(y.shape[0], -1).mean(1)
        share = one_hot(y, output.shape[-1]).double().mean(1)
        guess = torch.special.entr(share).sum(-1)
    return 1.0 - loss / guess.clamp(min=1e-12)


def r2(output: Tensor, y: Tensor) -> Tensor:
    """Return the share of the variance that is explained, averaged over the targets where there are several."""
    predicted = output.double().reshape(y.shape)
    truth = y.double()
    error = (predicted - truth).square().mean(1)
    spread = (truth - truth.mean(1, keepdim=True)).square().mean(1).clamp(min=1e-300)
    return (1.0 - error / spread).reshape(y.shape[0], -1).mean(1)


def _unknown(output: Tensor, y: Tensor) -> Tensor:
    raise DataError("--metric loss needs a --loss")


@dataclass(frozen=True)
class Metric:
    """A score by name.

    Attributes:
        id: As `--metric` names it.
        name: In sentences.
        score: Its function.
        tasks: The tasks that it suits.
        unit: Of a difference of two scores.
        factor: What a difference is multiplied by to be in that unit.
        lowest: Below which an axis of scores is cut off.
    """

    id: str
    name: str
    score: Score
    tasks: tuple[str, ...]
    unit: str = ""
    factor: float = 1.0
    lowest: float = 0.0


METRICS = {
    metric.id: metric
    for metric in (
        Metric("accuracy", "accuracy", accuracy, ("classification", "labels"), " points", 100.0),
        Metric("balanced-accuracy", "balanced accuracy", balanced_accuracy, ("classification",), " points", 100.0),
        Metric("auc", "AUC", auc, ("classification", "labels"), lowest=0.4),
        Metric("skill", "log-loss skill", skill, ("classification", "labels"), lowest=-0.5),
        Metric("r2", "R²", r2, ("regression",), lowest=-0.5),
        Metric("loss", "skill by your loss", _unknown, ()),  # own_loss.py has its formula
    )
}


def chosen_metric(name: str | None, data: Dataset) -> Metric:
    """Return the metric of that name, or the one that suits the data.

    Accuracy where the classes are about even; AUC for two uneven classes and for several labels a row, balanced
    accuracy for more classes that are uneven; R² for values.

    Raises:
        DataError: if there is no such metric, or it does not suit the task.
    """
    if name is None:
        return METRICS[_suited(data)]
    if name not in METRICS:
        raise DataError(f"there is no metric {name!r}; there are: {', '.join(METRICS)}")
    if data.task not in METRICS[name].tasks:
        able = ", ".join(m.id for m in METRICS.values() if data.task in m.tasks)
        raise DataError(f"--metric {name} does not suit {data.task}; these do: {able}")
    return METRICS[name]


def _suited(data: Dataset) -> str:
    if data.task == "regression":
        return "r2"
    if data.task == "labels":
        return "auc"
    counts = torch.bincount(torch.from_numpy(data.y).flatten())
    if counts.min() * len(counts) >= UNEVEN * counts.sum():
        return "accuracy"
    return "auc" if len(counts) == 2 else "balanced-accuracy"


def guessing(metric: Metric, data: Dataset) -> float:
    """Return what predicting without looking at the inputs scores."""
    if metric.id == "accuracy":
        y = torch.from_numpy(data.y)
        if data.task == "labels":
            share = y.double().mean(0)
            return torch.maximum(share, 1 - share).mean().item()
        return int(y.unique(return_counts=True)[1].max()) / y.numel()
    return {"balanced-accuracy": 1.0 / max(data.outputs, 1), "auc": 0.5}.get(metric.id, 0.0)


def scores(metric: Metric, output: Tensor, y: Tensor) -> list[float]:
    """Return each replica's score, NaN where its output is not finite."""
    finite = output.flatten(1).isfinite().all(1)
    values = metric.score(torch.nan_to_num(output), y).tolist()
    return [score if ok else math.nan for score, ok in zip(values, finite.tolist(), strict=True)]
