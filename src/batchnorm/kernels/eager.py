"""The two passes in a framework's own operations: right everywhere, in every dtype and layout, differentiable again.

Written on an array namespace, without writing in place, so that autograd, vmap and tracing see through it.
"""

from functools import cache, partial

from batchnorm.kernels.interface import Kernel
from batchnorm.layout import Plan
from batchnorm.statistics import Array, Coefficients, Moments, Namespace, Statistics


def working(x: Array, xp: Namespace) -> Array:
    """Return x in the working precision: float32 at least."""
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def _centred(x: Array, statistics: Statistics, xp: Namespace) -> Array:
    """Return (x − mean) − mean_low; the first difference is exact where it matters (Sterbenz)."""
    high = working(x, xp) - statistics.mean
    return high if isinstance(statistics.mean_low, float) else high - statistics.mean_low


def moments(xp: Namespace, x: Array, plan: Plan) -> Moments:
    """Return (N, μ, Σ(x−μ)²), centring twice: the mean of what the first centring left is the low part of μ."""
    values = working(x, xp)
    mean = xp.mean(values, axis=plan.reduced, keepdims=True)
    centred = values - mean
    mean_low = xp.mean(centred, axis=plan.reduced, keepdims=True)
    centred = centred - mean_low
    m2 = xp.sum(centred * centred, axis=plan.reduced, keepdims=True)
    return Moments(plan.count(x.shape), mean, m2, mean_low)


def affine(xp: Namespace, x: Array, statistics: Statistics, scale: Array, shift: Array) -> Array:
    """Return y = (x−μ)·scale + shift. Never scale·x + (shift − scale·μ): that cancels where |μ| ≫ σ."""
    return xp.astype(_centred(x, statistics, xp) * scale + shift, x.dtype, copy=False)


def backward_reduce(xp: Namespace, dy: Array, x: Array, plan: Plan, statistics: Statistics) -> tuple[Array, Array]:
    """Return Σdy and Σdy·(x−μ)."""
    grad = working(dy, xp)
    sum_dy = xp.sum(grad, axis=plan.reduced, keepdims=True)
    return sum_dy, xp.sum(grad * _centred(x, statistics, xp), axis=plan.reduced, keepdims=True)


def backward_elementwise(
    xp: Namespace, dy: Array, x: Array, statistics: Statistics, coefficients: Coefficients
) -> Array:
    """Return dx = dy·of_dy + (x−μ)·of_centred + constant."""
    of_dy, of_centred, constant = coefficients
    dx = working(dy, xp) * of_dy + (_centred(x, statistics, xp) * of_centred + constant)
    return xp.astype(dx, x.dtype, copy=False)


@cache
def kernel(xp: Namespace) -> Kernel:
    """Return the eager kernel over one array namespace."""
    return Kernel(
        "eager",
        "framework operations: this version has no native kernel",
        partial(moments, xp),
        partial(affine, xp),
        partial(backward_reduce, xp),
        partial(backward_elementwise, xp),
    )
