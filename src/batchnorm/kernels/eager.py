"""The two passes in a framework's own operations: right everywhere, in every dtype and layout, differentiable again.

Written on an array namespace, without writing in place, so that autograd, vmap and tracing see through it.
"""

import math
from functools import partial

from batchnorm.activations import ACTIVATIONS, activated
from batchnorm.kernels.interface import Kernel
from batchnorm.layout import Plan
from batchnorm.statistics import Array, Coefficients, Moments, Namespace, Statistics, divisor, is_number, sizes

BLOCK = 256  # values that are added one after another


def working(x: Array, xp: Namespace) -> Array:
    """Return x in the working precision: float32 at least."""
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def _centred(x: Array, statistics: Statistics, xp: Namespace) -> Array:
    """Return (x − mean) − mean_low; the first difference is exact where it matters (Sterbenz)."""
    high = working(x, xp) - statistics.mean
    return high if isinstance(statistics.mean_low, float) else high - statistics.mean_low


def _where_weighted(weights: Array | None, values: Array, xp: Namespace) -> Array:
    """Return the values, and 0 where the weight is zero: 0·x would not do where x is inf or NaN."""
    return values if weights is None else xp.where(weights > 0, values, xp.zeros_like(values))


def _along(values: Array, axis: int, xp: Namespace) -> Array:
    """Return the sum along one axis, kept, of blocks that are summed first."""
    size, some = values.shape[axis], [slice(None)] * len(values.shape)
    if size is None or size <= BLOCK:
        return xp.sum(values, axis=axis, keepdims=True)
    rows = size // BLOCK
    some[axis] = slice(0, rows * BLOCK)
    shape = sizes(values, xp)
    blocks = xp.reshape(values[tuple(some)], (*shape[:axis], BLOCK, rows, *shape[axis + 1 :]))
    total = _along(_apart(xp.sum(blocks, axis=axis), xp), axis, xp)
    some[axis] = slice(rows * BLOCK, size)
    return total if rows * BLOCK == size else total + xp.sum(values[tuple(some)], axis=axis, keepdims=True)


def _apart(sums: Array, xp: Namespace) -> Array:
    """Return the sums, in a way that keeps a compiler from adding up what went into them in one go (XLA would)."""
    return xp.maximum(sums, xp.full_like(sums, -math.inf))


def sum_in_blocks(values: Array, plan: Plan, xp: Namespace) -> Array:
    """Return the sum over the reduced axes, kept: of blocks, then of their sums.

    A framework that adds one value after another loses a digit with every tenfold of them; of 10⁵ values it keeps two
    to five digits, in blocks nearly all.
    """
    for axis in reversed(plan.reduced):
        values = _apart(_along(values, axis, xp), xp)
    return values


def counted(x: Array, xp: Namespace, plan: Plan, weights: Array | None) -> Array:
    """Return N, or Σw in the kept shape of groups."""
    shape = sizes(x, xp)
    if weights is None:
        count = plan.count(shape)
        return count if is_number(count) else xp.astype(count, working(x, xp).dtype)
    counted = (*plan.reduced, plan.group_axis)  # weights may be of size 1 along any axis
    each = tuple(n if i in counted else 1 for i, n in enumerate(shape))
    return xp.sum(xp.broadcast_to(weights, each), axis=plan.reduced, keepdims=True)


def moments(xp: Namespace, x: Array, plan: Plan, weights: Array | None = None, *, cascade: bool = False) -> Moments:
    """Return (N, μ, Σw(x−μ)²), centring twice: the mean of what the first centring left is the low part of μ.

    Sums are the framework's own where it adds in a `cascade`, else `sum_in_blocks`. The count is one for each group,
    and the same for all features.
    """

    def total(values: Array) -> Array:
        values = values if weights is None else values * weights
        return xp.sum(values, axis=plan.reduced, keepdims=True) if cascade else sum_in_blocks(values, plan, xp)

    count = counted(x, xp, plan, weights)
    n, values = divisor(count, xp), _where_weighted(weights, working(x, xp), xp)
    mean = total(values) / n
    centred = values - mean
    if weights is not None:  # a large mean must not be squared where there is nothing; these are finite, so 0· will do
        centred = centred * xp.astype(weights > 0, centred.dtype)
    mean_low = total(centred) / n
    centred = centred - mean_low
    return Moments(count, mean, total(centred * centred), mean_low)


def affine(
    xp: Namespace,
    x: Array,
    statistics: Statistics,
    scale: Array,
    shift: Array,
    *,
    residual: Array | None = None,
    activation: str | None = None,
) -> Array:
    """Return y = act((x−μ)·scale + shift + residual).

    Never scale·x + (shift − scale·μ): that cancels where |μ| ≫ σ.
    """
    z = _before_activation(xp, x, statistics, scale, shift, residual)
    return xp.astype(activated(z, activation, xp), x.dtype, copy=False)


def _before_activation(
    xp: Namespace, x: Array, statistics: Statistics, scale: Array, shift: Array, residual: Array | None
) -> Array:
    z = _centred(x, statistics, xp) * scale + shift
    return z if residual is None else z + working(residual, xp)


def backward_activation(
    xp: Namespace,
    dy: Array,
    x: Array,
    statistics: Statistics,
    scale: Array,
    shift: Array,
    *,
    activation: str,
    residual: Array | None = None,
    y: Array | None = None,
) -> Array:
    """Return dz = dy·act'(z), in the working precision; z from y where its sign is enough, else computed again."""
    z = _before_activation(xp, x, statistics, scale, shift, residual) if y is None else y
    return ACTIVATIONS[activation].gradient(working(dy, xp), z, xp)


def backward_reduce(xp: Namespace, dz: Array, x: Array, plan: Plan, statistics: Statistics) -> tuple[Array, Array]:
    """Return Σdz and Σdz·(x−μ)."""
    grad = working(dz, xp)
    sum_dz = xp.sum(grad, axis=plan.reduced, keepdims=True)
    return sum_dz, xp.sum(grad * _centred(x, statistics, xp), axis=plan.reduced, keepdims=True)


def backward_elementwise(
    xp: Namespace,
    dz: Array,
    x: Array,
    statistics: Statistics,
    coefficients: Coefficients,
    weights: Array | None = None,
) -> Array:
    """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant)."""
    of_dy, of_centred, constant = coefficients
    if of_centred is None:
        return xp.astype(working(dz, xp) * of_dy, x.dtype, copy=False)
    through_moments = _centred(x, statistics, xp) * of_centred + constant
    if weights is not None:
        through_moments = _where_weighted(weights, through_moments * weights, xp)
    return xp.astype(working(dz, xp) * of_dy + through_moments, x.dtype, copy=False)


def kernel(xp: Namespace, *, cascade: bool = False) -> Kernel:
    """Return the eager kernel over one array namespace; `cascade`: its sums add in a tree, not one after another."""
    return Kernel(
        "eager",
        "framework operations: this version has no native kernel",
        partial(moments, xp, cascade=cascade),
        partial(affine, xp),
        partial(backward_activation, xp),
        partial(backward_reduce, xp),
        partial(backward_elementwise, xp),
    )
