"""What a backend offers: five functions and a name."""

from collections.abc import Callable
from dataclasses import dataclass

from batchnorm.statistics import Array, Moments


@dataclass(frozen=True)
class Kernel:
    """One implementation of the two passes, forward and backward.

    z is the output before the activation, w the weights of samples in an array that broadcasts against x.

    Attributes:
        name: As `batchnorm info` and `extra_repr` show it.
        reason: Why this kernel runs and not a faster one.
        moments: `(x, plan, w=None) -> Moments`, one pass.
        affine: `(x, statistics, scale, shift, *, residual=None, activation=None) -> y`, one pass:
            y = act((x−μ)·scale + shift + residual), in the dtype of x.
        backward_activation: `(dy, x, statistics, scale, shift, *, activation, residual=None, y=None) -> dz`, only where
            there is an activation.
        backward_reduce: `(dz, x, plan, statistics) -> (Σdz, Σdz·(x−μ))`, one pass.
        backward_elementwise: `(dz, x, statistics, coefficients, w=None) -> dx` in the dtype of x, one pass.
    """

    name: str
    reason: str
    moments: Callable[..., Moments]
    affine: Callable[..., Array]
    backward_activation: Callable[..., Array]
    backward_reduce: Callable[..., tuple[Array, Array]]
    backward_elementwise: Callable[..., Array]
