"""The real data that ship with scikit-learn, read from its files: to import it takes longer than all else together."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from batchnorm.study.data import Dataset


def _rows(name: str, skip: int = 0) -> NDArray[np.float64]:
    """Return the rows of a file of numbers with commas between, the target last."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn is not installed")
    path = Path(package.origin).parent / "datasets" / "data" / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return np.loadtxt(file, delimiter=",", skiprows=skip)


def digits() -> Dataset:
    """Return the handwritten digits that ship with scikit-learn: 1,797 real images of 8×8 pixels, 0 to 16."""
    rows = _rows("digits.csv.gz")
    source = "1,797 handwritten digits, 8×8 pixels (UCI; ships with scikit-learn)"
    return Dataset(
        "digits",
        source,
        rows[:, :-1].astype(np.float32),
        rows[:, -1].astype(np.int64),
        "classification",
        tuple("0123456789"),
        scaling="minmax",  # as in the paper: pixels from 0 to 1
        fixed_goals=(0.90, 0.95),
    )


def breast_cancer() -> Dataset:
    """Return the breast cancer table that ships with scikit-learn: 569 rows, 30 features of very different scale."""
    rows = _rows("breast_cancer.csv", skip=1)
    source = "569 breast tumours, 30 features whose scales differ 10⁵-fold (UCI; ships with scikit-learn)"
    return Dataset(
        "breast cancer",
        source,
        rows[:, :-1].astype(np.float32),
        rows[:, -1].astype(np.int64),
        "classification",
        ("malignant", "benign"),
    )
