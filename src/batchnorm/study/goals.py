"""When a run has arrived: scores set before any network is trained, by models that have no part in the comparison."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from batchnorm.study.data import DataError, Dataset, Goals, split

SHARES = {"easy": 0.90, "hard": 0.95}
PARTS = ("validation", "test")
MOST_ROWS = 5000
LEAST_GAIN = 0.02


def _models(data: Dataset) -> tuple[Any, Sequence[Any]]:
    """Return what guesses, and the reference models."""
    if data.task == "classification":
        forest = RandomForestClassifier(n_estimators=50, random_state=0)
        return DummyClassifier(), (LogisticRegression(max_iter=1000), forest)
    return DummyRegressor(), (Ridge(), RandomForestRegressor(n_estimators=50, random_state=0))


def _scores(data: Dataset, seed: int) -> dict[str, tuple[float, float]]:
    """Return, for each part of one seed's split, the score of guessing and that of the better reference model."""
    flat, rows = data.x.reshape(len(data.x), -1), split(data, seed)
    train = rows.train[:MOST_ROWS]
    guess, models = _models(data)
    fitted = [make_pipeline(StandardScaler(), m).fit(flat[train], data.y[train]) for m in (guess, *models)]
    found: dict[str, tuple[float, float]] = {}
    for part in PARTS:
        at = getattr(rows, part)
        floor, *others = (float(model.score(flat[at], data.y[at])) for model in fitted)
        found[part] = floor, max(floor, *others)
    return found


def with_goals(data: Dataset, seeds: int) -> Dataset:
    """Set the goals of every seed: 90 % (easy) and 95 % (hard) of the way from guessing to a reference model.

    The reference is the better of a linear model and a random forest, on the very rows that the networks will be scored
    on: a small test part may be easy or hard by chance. Goals that are fixed in the data stay.

    Raises:
        DataError: if the reference predicts hardly better than guessing.
    """
    if data.fixed_goals is not None:
        fixed = dict(zip(SHARES, data.fixed_goals, strict=True))
        return replace(data, goals={level: dict.fromkeys(PARTS, (goal,) * seeds) for level, goal in fixed.items()})
    found = [_scores(data, seed) for seed in range(seeds)]
    goals: Goals = {
        level: {
            part: tuple(round(low + share * (high - low), 4) for low, high in (scores[part] for scores in found))
            for part in PARTS
        }
        for level, share in SHARES.items()
    }
    floor, ceiling = (median(scores["test"][i] for scores in found) for i in (0, 1))
    if ceiling - floor < LEAST_GAIN:
        raise DataError(
            f"the target of {data.name} cannot be told from its features: guessing scores {data.score_name} "
            f"{floor:.3f}, a linear model or a forest {ceiling:.3f}; there is nothing to train for"
        )
    return replace(data, goals=goals)
