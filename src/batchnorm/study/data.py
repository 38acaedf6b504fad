"""The data a study runs on: arrays with names, split anew for every seed, and the goals a run must reach."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import BatchNormError

if TYPE_CHECKING:
    from batchnorm.study.arrays import Input
    from batchnorm.study.own_loss import OwnLoss
    from batchnorm.study.tables.recipe import Column, Recipe

Task = Literal["classification", "regression", "labels"]
Indices = NDArray[np.int64]

FEWEST_ROWS = 20
FEW_ROWS = 50
FEWEST_PER_CLASS = 5
MOST_EVALUATED = 1000


class DataError(BatchNormError):
    """Data that no study can run on, in one line that says why."""


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets, as they come: nothing is scaled yet.

    Attributes:
        name: Short name for tables and file names.
        source: Where the data come from, in words.
        x: Inputs, one row an example; networks get them as float32 once they are scaled.
        y: int64 class numbers; or values to predict; or, for "labels", 0 and 1 for each of several labels, (N, labels).
        task: What `y` is.
        classes: Names of the classes; empty for regression.
        notes: What was changed or is worth knowing: dropped columns, few rows.
        scaling: How inputs are scaled unless a claim asks otherwise: "standard" or "minmax".
        fixed_goals: Scores at which a run is near the goal, and at it; None: they follow what runs can reach.
        metric: Name of the score; "" until it is chosen.
        recipe: How the table that the data come from was read and encoded; None if they come from no table.
        profile: What each column of that table was read as.
        inputs: What a model of the user's own takes, where that is more than `x` as scaled numbers: then `x` has two
            axes, and the columns of each input stand one after the other.
        batch_size: Of the `DataLoader` that the data were read from.
        loss: The user's own loss; None: the one that suits the task.
    """

    name: str
    source: str
    x: NDArray[Any]
    y: NDArray[Any]
    task: Task
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scaling: str = "standard"
    fixed_goals: tuple[float, float] | None = None
    metric: str = ""
    recipe: "Recipe | None" = None
    profile: "tuple[Column, ...]" = ()
    inputs: "tuple[Input, ...]" = ()
    batch_size: int | None = None
    loss: "OwnLoss | None" = None

    @property
    def outputs(self) -> int:
        """How many numbers a network must put out."""
        if self.loss is not None:
            return self.loss.outputs
        if self.task == "classification":
            return len(self.classes)
        return 1 if self.y.ndim == 1 else self.y.shape[1]


@dataclass(frozen=True)
class Split:
    """Row numbers of one seed's training, validation and test part (60, 20 and 20 %)."""

    train: Indices
    validation: Indices
    test: Indices


def split(data: Dataset, seed: int) -> Split:
    """Split the rows for one seed, class by class for classification; at most 1,000 rows are evaluated on.

    Each class is shuffled and laid out evenly from 0 to 1; what lies below 0.6 is trained on. So even a class of five
    rows has one in every part.
    """
    random = np.random.default_rng([seed, len(data.x)])
    shuffled = random.permutation(len(data.x))
    strata = data.y[shuffled] if data.task == "classification" else np.zeros(len(data.x), dtype=np.int64)
    rows = shuffled[np.argsort(strata, kind="stable")]
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in np.unique(strata, return_counts=True)[1]])
    part = np.searchsorted([0.6, 0.8], place, side="right")
    train, validation, test = (random.permutation(rows[part == i]) for i in range(3))
    return Split(train, validation[:MOST_EVALUATED], test[:MOST_EVALUATED])


def checked(data: Dataset) -> Dataset:
    """Return the data, or raise a one-line `DataError` where no study can run on them."""
    if len(data.x) != len(data.y):
        raise DataError(f"x and y must have one row an example each, got {len(data.x)} and {len(data.y)} rows")
    if len(data.x) < FEWEST_ROWS:
        raise DataError(f"a study needs at least {FEWEST_ROWS} rows, {data.name} has {len(data.x)}")
    if data.x[0].size == 0:
        raise DataError(f"x must have at least one feature, got shape {data.x.shape}")
    if not np.isfinite(data.x).all() or not np.isfinite(data.y).all():
        raise DataError(f"{data.name} holds NaN or infinite values; fill or drop them first")
    if data.task == "classification" and len(data.classes) == 1:
        raise DataError(f"the target of {data.name} has one class, {data.classes[0]!r}: there is nothing to tell apart")
    if data.task == "classification" and (fewest := np.bincount(data.y).min()) < FEWEST_PER_CLASS:
        raise DataError(f"every class needs at least {FEWEST_PER_CLASS} rows, the rarest of {data.name} has {fewest}")
    return data


def scaler(scaling: str) -> Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]:
    """Return the function that learns (shift, factor) per feature from training rows: x ← (x − shift)·factor.

    "standard": to mean 0 and standard deviation 1. "minmax": to [0, 1]. "raw": as they are.
    """

    def learn(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if scaling == "raw":
            return np.zeros_like(rows[0]), np.ones_like(rows[0])
        shift, width = (rows.mean(0), rows.std(0)) if scaling == "standard" else (rows.min(0), np.ptp(rows, 0))
        return shift, 1.0 / np.where(width > 0, width, 1.0).astype(rows.dtype)

    return learn
