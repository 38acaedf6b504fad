"""What guessing and two reference models score: a table is refused only where neither tells anything."""

import statistics
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import tolerance
from batchnorm.study import references
from batchnorm.study.data import DataError, Dataset, split
from batchnorm.study.scores import METRICS, chosen_metric

ROWS = 600


def classes(share: float, signal: float, seed: int = 0) -> Dataset:
    """A table in which a share of the rows are of the second class, which the first feature tells, if it has signal."""
    random = np.random.default_rng(seed)
    y = (np.arange(ROWS) < share * ROWS).astype(np.int64)
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    x[:, 0] += signal * y
    return Dataset("churn", "", x, y, "classification", ("stays", "leaves"))


def values(signal: float, scale: float = 1.0) -> Dataset:
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    y = (scale * (signal * x[:, 0] + random.normal(size=ROWS))).astype(np.float32)
    return Dataset("prices", "", x, y, "regression")


def of(data: Dataset, metric: str | None = None, seed: int = 0) -> references.References:
    return references.references(data, chosen_metric(metric, data), seed)


def test_a_rare_class_that_features_tell_is_no_reason_to_refuse() -> None:
    """Six in a hundred leave; no model is more accurate than "all stay", and yet there is much to learn."""
    data = classes(0.06, 1.2)
    frame = of(data)
    assert frame.guess == 0.5
    assert frame.models["linear model"] > 0.7
    by_accuracy = METRICS["accuracy"]
    with pytest.raises(DataError, match=r"guessing scores accuracy 0\.940, a linear model 0\.9"):
        references.references(data, by_accuracy)


def test_what_cannot_be_told_is_refused_in_one_line() -> None:
    with pytest.raises(
        DataError, match=r"of churn cannot be told from its features: guessing scores AUC 0\.500"
    ) as raised:
        of(classes(0.06, 0.0, seed=2))
    assert "a linear model 0." in str(raised.value)
    assert "a forest 0." in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"guessing scores R² 0\.000, a linear model -0\.0"):
        of(values(0.0))


def test_the_linear_model_is_scored_as_by_hand() -> None:
    data, scores = values(1.0), []
    for seed in range(4, 4 + references.REPEATS):
        rows = split(data, seed)
        scaler = StandardScaler().fit(data.x[rows.train])
        model = Ridge().fit(scaler.transform(data.x[rows.train]), data.y[rows.train])
        scores.append(metrics.r2_score(data.y[rows.test], model.predict(scaler.transform(data.x[rows.test]))))
    frame = of(data, seed=4)
    assert frame.models["linear model"] == pytest.approx(statistics.median(scores), **tolerance.SINGLE)
    assert len(set(scores)) == references.REPEATS


def test_probabilities_are_scored_as_by_hand() -> None:
    data, scores = classes(0.2, 1.0), []
    for seed in range(references.REPEATS):
        rows = split(data, seed)
        scaler = StandardScaler().fit(data.x[rows.train])
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(data.x[rows.train]), data.y[rows.train])
        probabilities = model.predict_proba(scaler.transform(data.x[rows.test]))[:, 1]
        scores.append(metrics.roc_auc_score(data.y[rows.test], probabilities))
    assert of(data).models["linear model"] == pytest.approx(statistics.median(scores), **tolerance.SINGLE)


def test_where_no_reference_can_be_had_only_guessing_stands() -> None:
    y = np.stack([np.arange(ROWS) % 2, np.arange(ROWS) % 3 == 0], axis=1).astype(np.float32)
    labels = replace(values(1.0), y=y, task="labels")
    assert of(labels) == references.References(0.5, {})
    vast = replace(values(1.0), x=np.full((ROWS, 4), 1e300))
    assert of(vast) == references.References(0.0, {})


def test_images_are_references_too() -> None:
    data = classes(0.5, 2.0)
    pictures = replace(data, x=data.x.reshape(ROWS, 2, 2))
    assert of(pictures) == of(data)
