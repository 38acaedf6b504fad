"""The real data that ship with scikit-learn."""

from typing import Any

import numpy as np
from sklearn import datasets

from batchnorm.study.data import Dataset


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
        fixed_goals=(0.90, 0.95),
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
