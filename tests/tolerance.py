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
IN_PARTS = 1e-12  # a batch in parts beside the whole one in float64, where a mean is 10⁴ standard deviations
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


# What tests/test_batch_size_*.py measure rather than compute: of counts that the tests fix, with seeds.
NOISE_OF_MANY_BLOCKS = 0.05  # 1,000 blocks of 4 groups: about three standard errors of the noise scale
NOISE_OF_DIGITS = 0.15  # what the specification asks of 100 blocks against exact per-example gradients
COVERAGE = (0.90, 0.98)  # of a 95 % interval from 30 blocks, in 1,000 draws: the delta method is a little too narrow
SINGLE = {"rel": 16 * 2.0**-23, "abs": 0.0}  # of float32, for pytest.approx
SCALE_FREE = {"rel": 1e-6, "abs": 0.0}  # in float64, where ε = 1e-12 is all that knows the scale of the weights
HALF_PRECISION = 0.02  # of a ratio whose gradients were rounded to 8 bits
STATISTICS_NOISE = 0.1  # 50 blocks of 4 groups in 10 to 30 channels: variances of 1,500 degrees of freedom or more
EXACT_LINE = {"rel": 1e-9, "abs": 0.0}  # least squares in float64 through points that lie on a line
TO_ONE_IN_A_MILLION = {"rel": 1e-6, "abs": 0.0}  # least squares, or logarithms, of numbers far apart
ON_A_GRID = {"rel": 0.01, "abs": 0.0}  # of 1,000 or 4,000 sizes over up to seven decades
OVERTIME = 1.2  # times the budget in seconds, beside the last step: what a measurement may take
FAR = 0.9  # of two errors: the smaller is smaller by more than rounding
SILENTLY_WRONG = 0.01  # of the largest output: nobody takes it for rounding
TO_THE_EYE = {"rtol": 1e-3, "atol": 1e-3}  # of means that are equal, or apart by a tenth of σ and more
TRANSFERRED, TRANSFERRED_AND_TRAINED = 1e-6, 1e-4  # of the largest output: in inference, and after more steps
OF_MANY_DRAWS = {"rel": 0.02, "abs": 0.0}  # of the standard deviation of 10,000 normal numbers: three standard errors
THROUGH_LAYERS = 2.0**10  # roundings of a gradient that has gone back through three layers
STEPPED = {"rel": 1e-3, "abs": 0.0}  # in float32, of how far a gradient has changed at the end of a step
MEAN_FIELD = {"rel": 0.02, "abs": 0.0}  # a layer: of 100 units instead of infinitely many, and 60 rows
OF_RANDOM_GROUPS = {"rel": 0.1, "abs": 0.0}  # a variance over 32,000 rows in groups, averaged over sizes and units
LEAST_SQUARES = {"rel": 0.0, "abs": 1e-9}  # the distance of a slope in float64 from the line its points lie on
WHOLE_STEPS = {"rel": 0.15, "abs": 0.0}  # of a law fitted to numbers of steps, which are whole
OF_SCORES = {"rel": 1e-9, "abs": 1e-9}  # in float64; a difference of scores may be zero
OF_A_HUNDRED_DRAWS = {"rel": 0.0, "abs": 0.13}  # of a share: 2.6 standard errors or more
