"""The two passes in a framework's own operations: right everywhere, in every dtype and layout, differentiable again.

Written on an array namespace, without writing in place, so that autograd, vmap and tracing see through it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

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
    if not isinstance(size, int) or size <= BLOCK:  # a size that only the run tells is not asked how large it is
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


def _compiled_by_torch(xp: Namespace) -> bool:
    """Return whether Inductor may compile this: its sums do not add in a tree as torch's own do."""
    compiler = getattr(xp, "compiler", None)
    return compiler is not None and compiler.is_compiling()


def counted(x: Array, xp: Namespace, plan: Plan, weights: Array | None) -> Array:
    """Return N, or Σw in the kept shape of groups."""
    shape = sizes(x, xp)
    if weights is None:
        count = plan.count(shape)
        return count if is_number(count) else xp.astype(count, working(x, xp).dtype)
    spread = _spread(x, xp, plan)  # weights may be of size 1 along any axis
    return xp.sum(xp.broadcast_to(weights, spread), axis=plan.reduced, keepdims=True)


def _spread(x: Array, xp: Namespace, plan: Plan) -> tuple[Any, ...]:
    """Return the shape of x with 1 on the axes of features: what weights of samples broadcast to."""
    counted = (*plan.reduced, plan.group_axis)
    return tuple(n if i in counted else 1 for i, n in enumerate(sizes(x, xp)))


def _three(x: Array, plan: Plan, xp: Namespace) -> list[Array]:
    """Return the first, middle and last value of each feature along the reduced axes, kept."""
    shape = sizes(x, xp)
    known = all(is_number(shape[i]) for i in plan.reduced)

    def at(place: Callable[[Any], Any]) -> Array:
        some = [slice(None)] * len(shape)
        for i in plan.reduced:
            start = place(shape[i])
            some[i] = slice(start, start + 1)
        found = x[tuple(some)]
        return found if known else xp.sum(found, axis=plan.reduced, keepdims=True)  # of one value, or of none

    # Half of a symbolic size of torch would make an export with a dynamic batch depend on whether that is even.
    symbolic = known and not all(isinstance(shape[i], int) for i in plan.reduced)
    return [at(lambda _: 0), at((lambda _: 0) if symbolic else (lambda n: n // 2)), at(lambda n: n - 1)]


def _three_weighted(x: Array, plan: Plan, weights: Array, xp: Namespace) -> list[Array]:
    """Return the first, a middle and the last value of at least half the largest weight, and 0 where there is none.

    Such a value p lies within √(2·Σw/max w) standard deviations of the mean; one of next to no weight may lie anywhere.
    Each is the sum of one value and zeros, so that no order of adding can change it.
    """
    spread = _spread(x, xp, plan)
    size = plan.count(spread)
    rows = xp.reshape(
        xp.arange(size, device=getattr(x, "device", None)),
        tuple(1 if i == plan.group_axis else n for i, n in enumerate(spread)),
    )
    weights = xp.broadcast_to(weights, spread)
    heard = (weights > 0) & (2 * weights >= xp.max(weights, axis=plan.reduced, keepdims=True))
    none, zero = xp.full_like(rows, -1), xp.zeros_like(x)
    first = size - 1 - xp.max(xp.where(heard, size - 1 - rows, none), axis=plan.reduced, keepdims=True)
    middle = xp.max(xp.where(heard & (rows <= size // 2), rows, none), axis=plan.reduced, keepdims=True)
    last = xp.max(xp.where(heard, rows, none), axis=plan.reduced, keepdims=True)
    return [xp.sum(xp.where(rows == at, x, zero), axis=plan.reduced, keepdims=True) for at in (first, middle, last)]


def _pivot(x: Array, plan: Plan, weights: Array | None, xp: Namespace) -> Array:
    """Return a value of each feature to shift the others by: the median of three, so that one outlier never is it.

    A mean will not do. A compiler that fuses the sum into each of its uses works it out once for each, adding in
    another order, and shifts by something else each time: XLA and Inductor do so. A value of the data is the same in
    every order. It carries no gradient, as what is normalised does not depend on it; where it is not finite it is 0.
    """
    if any(is_number(n) and n == 0 for n in sizes(x, xp)):
        return xp.sum(x, axis=plan.reduced, keepdims=True)  # zeros
    a, b, c = _three(x, plan, xp) if weights is None else _three_weighted(x, plan, weights, xp)
    found = xp.maximum(xp.minimum(a, b), xp.minimum(xp.maximum(a, b), c))
    found = xp.where(xp.isfinite(found), found, xp.zeros_like(found))
    if hasattr(xp, "stop_gradient"):
        return xp.stop_gradient(found)
    return found.detach() if hasattr(found, "detach") else found


def moments(xp: Namespace, x: Array, plan: Plan, weights: Array | None = None, *, cascade: bool = False) -> Moments:
    """Return (N, μ, Σw(x−μ)²): shift by a value of the data, then centre once.

    The high part of μ is the shift, its low part the mean of the shifted values.
    Sums are the framework's own where it adds in a `cascade`, else `sum_in_blocks`. The count is one for each group,
    and the same for all features.
    """
    in_a_tree = cascade and not _compiled_by_torch(xp)

    def total(values: Array) -> Array:
        values = values if weights is None else values * weights
        return xp.sum(values, axis=plan.reduced, keepdims=True) if in_a_tree else sum_in_blocks(values, plan, xp)

    count = counted(x, xp, plan, weights)
    n, values = divisor(count, xp), working(x, xp)
    pivot = _pivot(values, plan, weights, xp)
    shifted = _where_weighted(weights, values - pivot, xp)
    rest = total(shifted) / n
    centred = _where_weighted(weights, shifted - rest, xp)
    return Moments(count, pivot, total(centred * centred), rest)


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
