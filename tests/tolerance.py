"""How close is close enough: the one place in the tests that holds a number for it.

A result in `dtype` may be off by k roundings of the precision it was computed in, float32 at least, times the size of
the terms it is made of; and by one rounding of `dtype` itself where that has 16 bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ROUNDINGS = 32  # k: the sums are over some hundred values
PROJECT_BOUND = 1e-5  # training outputs in float32, at a mean of 1e6 standard deviations too
DIFFERENCE_STEP = 2.0**-18  # of central differences in float64: truncation and rounding are about equal
DIFFERENCE_ROUNDINGS = 2.0**22
FEW_ROUNDINGS = {"rel": 8 * 2.0**-52, "abs": 0.0}  # of float64, for pytest.approx
FLIPPED_ROWS = 1.5  # rows of a test part that rounding alone may carry over the edge between two classes


def working(dtype: str) -> str:
    """Return the precision that `dtype` is computed in."""
    return "float64" if dtype == "float64" else "float32"


def conditioning(mean: Any, std: Any) -> NDArray[np.float64]:
    """Return 1 + |mean|/σ: by how much one rounding of x, or of μ, grows in (x−μ)/σ."""
    return 1.0 + np.abs(mean) / np.asarray(std)


def largest_error(actual: Any, truth: Any) -> float:
    return float(np.max(np.abs(np.asarray(actual, np.float64) - truth), initial=0.0))


def assert_close(actual: Any, expected: Any, dtype: str, scale: Any = 1.0, *, roundings: float = ROUNDINGS) -> None:
    """Assert |actual − expected| ≤ k·eps·scale, plus one rounding of a 16-bit `dtype`; shapes must agree."""
    got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape
    bound = roundings * EPS[working(dtype)] * np.broadcast_to(scale, want.shape)
    if dtype != working(dtype):
        bound = bound + EPS[dtype] * np.abs(want)
    error = np.abs(got - want)
    assert (error <= bound).all(), f"off by {np.max(error)}, {np.max(error - bound)} more than allowed"


def assert_no_worse(ours: Any, framework: Any, truth: Any, dtype: str) -> None:
    """Assert err(ours) ≤ 2·err(framework) + 1 ulp, against float64."""
    allowed = 2.0 * largest_error(framework, truth) + EPS[dtype] * largest_error(truth, 0.0)
    assert largest_error(ours, truth) <= allowed, f"{largest_error(ours, truth)} > {allowed}"


def assert_within_project_bound(y: Any, truth: Any) -> None:
    """Assert that an output of unit variance is within 1e-5 of float64 on the same input."""
    assert largest_error(y, truth) <= PROJECT_BOUND


def assert_same_to_project_bound(actual: Any, expected: Any) -> None:
    """Assert that two results in float32 agree to 1e-5 of the largest."""
    got, want = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == want.shape
    assert largest_error(got, want) <= PROJECT_BOUND * max(1.0, largest_error(want, 0.0))
