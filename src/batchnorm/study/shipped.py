"""The real data that ship with scikit-learn, and the goals that its reference models set for any data."""

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batchnorm.study.data import Dataset, split

MOST_FOR_REFERENCE = 5000


def digits() -> Dataset:
    """Return the handwritten digits that ship with scikit-learn: 1,797 real images of 8×8 pixels, 0 to 16."""
    bunch: Any = datasets.load_digits()
    source = "1,797 handwritten digits, 8×8 pixels (UCI; ships with scikit-learn)"
    return Dataset(
        "digits",
        source,
        bunch.data.astype(np.float32),
        bunch.target.astype(np.int64),
        "classification",
        tuple("0123456789"),
        scaling="minmax",  # as in the paper: pixels from 0 to 1
        goals=(0.90, 0.95),
    )


def breast_cancer() -> Dataset:
    """Return the breast cancer table that ships with scikit-learn: 569 rows, 30 features of very different scale."""
    bunch: Any = datasets.load_breast_cancer()
    source = "569 breast tumours, 30 features whose scales differ 10⁵-fold (UCI; ships with scikit-learn)"
    return Dataset(
        "breast cancer",
        source,
        bunch.data.astype(np.float32),
        bunch.target.astype(np.int64),
        "classification",
        tuple(str(name) for name in bunch.target_names),
    )


def with_goals(data: Dataset) -> Dataset:
    """Set the goals before any network is trained: 90 % and 95 % of the way from guessing to a reference model.

    The reference is the better of a linear model and a random forest on the validation part of the first split, so that
    no goal depends on the networks compared.
    """
    if data.goals is not None:
        return data
    flat, parts = data.x.reshape(len(data.x), -1), split(data, 0)
    train = parts.train[:MOST_FOR_REFERENCE]
    if data.task == "classification":
        guess, models = DummyClassifier(), (LogisticRegression(max_iter=1000), RandomForestClassifier(random_state=0))
    else:
        guess, models = DummyRegressor(), (Ridge(), RandomForestRegressor(random_state=0))

    def score(model: Any) -> float:
        fitted = make_pipeline(StandardScaler(), model).fit(flat[train], data.y[train])
        return float(fitted.score(flat[parts.validation], data.y[parts.validation]))

    floor = score(guess)
    ceiling = max(score(model) for model in models)
    notes = data.notes
    if ceiling - floor < 0.02:
        notes = (
            *notes,
            f"neither a linear model nor a forest predicts it: {data.score_name} {ceiling:.3f}, guessing {floor:.3f}",
        )
    goals = (round(floor + 0.90 * (ceiling - floor), 4), round(floor + 0.95 * (ceiling - floor), 4))
    return replace(data, goals=goals, notes=notes)
