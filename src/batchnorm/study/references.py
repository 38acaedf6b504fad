"""What guessing and two reference models score: the frame in which the scores of networks are read."""

from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchnorm.study.data import DataError, Dataset, split
from batchnorm.study.scores import Metric, guessing

MOST_ROWS = 5000
LEAST_GAIN = 0.02
REPEATS = 3


@dataclass(frozen=True)
class References:
    """Test scores of what has no part in the comparison: medians over splits.

    Attributes:
        guess: Of predicting without looking at the inputs.
        models: Of each reference model by name.
    """

    guess: float
    models: dict[str, float]


def _models(data: Dataset) -> dict[str, Any]:
    # Imported by the worker that fits them, while others train.
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if data.task == "classification":
        linear: Any = LogisticRegression(max_iter=1000)
        forest: Any = RandomForestClassifier(n_estimators=50, random_state=0)
    else:
        linear, forest = Ridge(), RandomForestRegressor(n_estimators=50, random_state=0)
    return {"linear model": make_pipeline(StandardScaler(), linear), "forest": forest}


def _outputs(model: Any, x: NDArray[Any], data: Dataset) -> torch.Tensor:
    """Return what the metric takes as a network's outputs, (1, N, K): logarithms of probabilities, or values."""
    if data.task == "classification":
        probabilities = np.zeros((len(x), data.outputs))
        probabilities[:, model.classes_] = model.predict_proba(x)
        return torch.from_numpy(np.log(np.clip(probabilities, 1e-6, None)))[None]
    return torch.from_numpy(np.asarray(model.predict(x), dtype=np.float64).reshape(1, len(x), -1))


def _scores(data: Dataset, metric: Metric, seed: int) -> dict[str, float]:
    rows = split(data, seed)
    x, train = data.x.reshape(len(data.x), -1), rows.train[:MOST_ROWS]
    y = torch.from_numpy(data.y[rows.test])[None]
    fitted = {name: model.fit(x[train], data.y[train]) for name, model in _models(data).items()}
    return {name: metric.score(_outputs(model, x[rows.test], data), y).item() for name, model in fitted.items()}


def references(data: Dataset, metric: Metric, seed: int = 0) -> References:
    """Return what guessing, a linear model and a random forest score on the test rows of a few splits.

    Raises:
        DataError: if both models predict hardly better than guessing, for data that are columns of numbers.
    """
    guess = guessing(metric, data)
    with np.errstate(over="ignore"):
        overflow = not np.isfinite(np.square(data.x)).all()
    if data.task == "labels" or data.metric == "loss" or overflow:
        return References(guess, {})
    splits = [_scores(data, metric, seed + i) for i in range(REPEATS)]
    models = {name: median(scores[name] for scores in splits) for name in splits[0]}
    as_columns = data.x.ndim == 2 and not data.inputs  # images and ids may hold what these two models do not see
    if as_columns and max(models.values()) - guess < LEAST_GAIN:
        raise DataError(
            f"the target of {data.name} cannot be told from its features: guessing scores {metric.name} {guess:.3f}, "
            + " and ".join(f"a {name} {score:.3f}" for name, score in models.items())
            + "; there is nothing to train for"
        )
    return References(guess, models)
