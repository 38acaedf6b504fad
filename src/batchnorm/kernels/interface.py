"""What a backend offers: five functions and a name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from batchnorm.statistics import Array, Moments


class Forward(NamedTuple):
    """What a forward in one call gives.

    Attributes:
        y: Output.
        moments: Of x.
        inv_std: 1/√(σ²+ε), in the kept shape.
        bits: The signs of z where the backward cannot find them from x; else None.
    """

    y: Array
    moments: Moments
    inv_std: Array
    bits: Array | None


class Wanted(NamedTuple):
    """What a backward is asked for; sums are always given where dx needs them."""

    dx: bool
    dz: bool
    sums: bool


class Backward(NamedTuple):
    """What a backward in one call gives; None for what was not asked for."""

    dz: Array | None
    sum_dz: Array | None
    sum_dz_centred: Array | None
    dx: Array | None


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
        forward: `(x, plan, gamma, beta, *, eps, activation=None, residual=None, weights=None) -> Forward`, the moments
            and the affine map in one call, where the statistics are those of the batch; None where there is none.
        backward: `(dy, x, statistics, scale, shift, *, activation, residual, bits, weights, wants) -> Backward`, all
            four of the backward in one call, likewise.
    """

    name: str
    reason: str
    moments: Callable[..., Moments]
    affine: Callable[..., Array]
    backward_activation: Callable[..., Array]
    backward_reduce: Callable[..., tuple[Array, Array]]
    backward_elementwise: Callable[..., Array]
    forward: Callable[..., Forward] | None = None
    backward: Callable[..., Backward] | None = None
