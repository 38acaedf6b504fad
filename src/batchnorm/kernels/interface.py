"""What a backend offers: four functions and a name."""

from collections.abc import Callable
from dataclasses import dataclass

from batchnorm.layout import Plan
from batchnorm.statistics import Array, Coefficients, Moments, Statistics


@dataclass(frozen=True)
class Kernel:
    """One implementation of the two passes, forward and backward.

    Attributes:
        name: As `batchnorm info` and `extra_repr` show it.
        reason: Why this kernel runs and not a faster one.
        moments: `(x, plan) -> Moments`, one pass.
        affine: `(x, statistics, scale, shift) -> y`, y = (x−μ)·scale + shift in the dtype of x, one pass.
        backward_reduce: `(dy, x, plan, statistics) -> (Σdy, Σdy·(x−μ))`, one pass.
        backward_elementwise: `(dy, x, statistics, coefficients) -> dx` in the dtype of x, one pass.
    """

    name: str
    reason: str
    moments: Callable[[Array, Plan], Moments]
    affine: Callable[[Array, Statistics, Array, Array], Array]
    backward_reduce: Callable[[Array, Array, Plan, Statistics], tuple[Array, Array]]
    backward_elementwise: Callable[[Array, Array, Statistics, Coefficients], Array]
