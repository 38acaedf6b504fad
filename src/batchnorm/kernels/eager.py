"""The passes in a framework's own operations: right everywhere, in every dtype and layout, differentiable again.

Written on an array namespace, without writing in place, so that autograd, vmap and tracing see through it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from batchnorm.activations import ACTIVATIONS, activated
from batchnorm.kernels.interface import Facts
from batchnorm.statistics import Array, Namespace, bits_of, constant, divisor, is_number, sizes

BLOCK = 256  # values that are added one after another


def working(x: Array, xp: Namespace) -> Array:
    """Return x in the working precision: float32 at least."""
    return xp.astype(x, xp.float32) if bits_of(x.dtype, xp) < 32 else x


def precise(x: Array, xp: Namespace) -> Any:
    """Return the working dtype of x."""
    return xp.float64 if x.dtype == xp.float64 else xp.float32


def _centred(x: Array, mean: Array, mean_low: Array | None, xp: Namespace) -> Array:
    """Return (x − mean) − mean_low; the first difference is exact where it matters (Sterbenz)."""
    high = working(x, xp) - mean
    return high if mean_low is None else high - mean_low


def _where_weighted(weights: Array | None, values: Array, xp: Namespace) -> Array:
    """Return the values, and 0 where the weight is zero: 0·x would not do where x is inf or NaN."""
    return values if weights is None else xp.where(weights > 0, values, xp.zeros_like(values))


def _sum_along(values: Array, axis: int, xp: Namespace) -> Array:
    """Return the sum along one axis, kept, of blocks that are summed first."""
    size, block = values.shape[axis], [slice(None)] * len(values.shape)
    if not isinstance(size, int) or size <= BLOCK:  # a size that only the run tells is not asked how large it is
        return xp.sum(values, axis=axis, keepdims=True)
    rows = size // BLOCK
    block[axis] = slice(0, rows * BLOCK)
    shape = sizes(values, xp)
    blocks = xp.reshape(values[tuple(block)], (*shape[:axis], BLOCK, rows, *shape[axis + 1 :]))
    total = _sum_along(_unfused(xp.sum(blocks, axis=axis), xp), axis, xp)
    block[axis] = slice(rows * BLOCK, size)
    return total if rows * BLOCK == size else total + xp.sum(values[tuple(block)], axis=axis, keepdims=True)


def _unfused(sums: Array, xp: Namespace) -> Array:
    """Return the sums, in a way that keeps a compiler from adding up what went into them in one go (XLA would)."""
    return xp.maximum(sums, xp.full_like(sums, -math.inf))


def sum_in_blocks(values: Array, reduced: Sequence[int], xp: Namespace) -> Array:
    """Return the sum over the axes `reduced`, kept: of blocks, then of their sums.

    A framework that adds one value after another loses a digit with every tenfold of them; of 10⁵ values it keeps two
    to five digits, in blocks nearly all.
    """
    for axis in reversed(reduced):
        values = _unfused(_sum_along(values, axis, xp), xp)
    return values


def _compiled_by_torch(xp: Namespace) -> bool:
    """Return whether Inductor may compile this: its sums do not add in a tree as torch's own do."""
    compiler = getattr(xp, "compiler", None)
    return compiler is not None and compiler.is_compiling()


def _three(x: Array, reduced: Sequence[int], xp: Namespace) -> list[Array]:
    """Return the first, middle and last value of each feature along the axes `reduced`, kept."""
    shape = sizes(x, xp)
    known = all(is_number(shape[i]) for i in reduced)

    def at(place: Callable[[Any], Any]) -> Array:
        index = [slice(None)] * len(shape)
        for i in reduced:
            start = place(shape[i])
            index[i] = slice(start, start + 1)
        value = x[tuple(index)]
        return value if known else xp.sum(value, axis=reduced, keepdims=True)  # of one value, or of none

    # Half of a symbolic size of torch would make an export with a dynamic batch depend on whether that is even.
    symbolic = known and not all(isinstance(shape[i], int) for i in reduced)
    return [at(lambda _: 0), at((lambda _: 0) if symbolic else (lambda n: n // 2)), at(lambda n: n - 1)]


def _three_weighted(x: Array, reduced: Sequence[int], weights: Array, xp: Namespace) -> list[Array]:
    """Return the first, a middle and the last value of at least half the largest weight, and 0 where there is none.

    Such a value p lies within √(2·Σw/max w) standard deviations of the mean; one of next to no weight may lie anywhere.
    Each is the sum of one value and zeros, so that no order of adding can change it.
    """
    shape = tuple(n if i in reduced else 1 for i, n in enumerate(sizes(x, xp)))
    size = math.prod([shape[i] for i in reduced])
    rows = xp.reshape(xp.arange(size, device=getattr(x, "device", None)), shape)
    heavy = (weights > 0) & (2 * weights >= xp.max(weights, axis=reduced, keepdims=True))
    none, zero = xp.full_like(rows, -1), xp.zeros_like(x)
    first = size - 1 - xp.max(xp.where(heavy, size - 1 - rows, none), axis=reduced, keepdims=True)
    middle = xp.max(xp.where(heavy & (rows <= size // 2), rows, none), axis=reduced, keepdims=True)
    last = xp.max(xp.where(heavy, rows, none), axis=reduced, keepdims=True)
    return [xp.sum(xp.where(rows == at, x, zero), axis=reduced, keepdims=True) for at in (first, middle, last)]


def _pivot(x: Array, reduced: Sequence[int], weights: Array | None, xp: Namespace) -> Array:
    """Return a value of each feature to shift the others by: the median of three, so that one outlier never is it.

    A mean will not do. A compiler that fuses the sum into each of its uses works it out once for each, adding in
    another order, and shifts by something else each time: XLA and Inductor do so. A value of the data is the same in
    every order. It carries no gradient, as what is normalised does not depend on it; where it is not finite it is 0.
    """
    if any(is_number(n) and n == 0 for n in sizes(x, xp)):
        return xp.sum(x, axis=reduced, keepdims=True)  # zeros
    a, b, c = _three(x, reduced, xp) if weights is None else _three_weighted(x, reduced, weights, xp)
    median = xp.maximum(xp.minimum(a, b), xp.minimum(xp.maximum(a, b), c))
    return constant(xp.where(xp.isfinite(median), median, xp.zeros_like(median)), xp)


class EagerKernel:
    """The kernel of one array namespace `xp`; `cascade`: whether its sums add in a tree, not one after another."""

    name = "eager"

    def __init__(self, xp: Namespace, *, cascade: bool = False) -> None:
        """Create the kernel of a namespace."""
        self._xp, self._cascade = xp, cascade

    def moments(
        self, x: Array, reduced: Sequence[int], count: Any, weights: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Return the mean, m2 and the low part of the mean: shift by a value of the data, then centre once.

        The high part of the mean is the shift, its low part the mean of the shifted values. Sums are the framework's
        own where it adds in a tree, else `sum_in_blocks`.
        """
        xp, in_a_tree = self._xp, self._cascade and not _compiled_by_torch(self._xp)

        def total(values: Array) -> Array:
            values = values if weights is None else values * weights
            return xp.sum(values, axis=reduced, keepdims=True) if in_a_tree else sum_in_blocks(values, reduced, xp)

        values = working(x, xp)
        pivot = _pivot(values, reduced, weights, xp)
        shifted = _where_weighted(weights, values - pivot, xp)
        rest = total(shifted) / divisor(count, xp)
        centred = _where_weighted(weights, shifted - rest, xp)
        return pivot, total(centred * centred), rest

    def affine(
        self,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        scale: Array,
        shift: Array,
        *,
        residual: Array | None = None,
        activation: str | None = None,
    ) -> Array:
        """Return y = act((x−μ)·scale + shift + residual).

        Never scale·x + (shift − scale·μ): that cancels where |μ| ≫ σ.
        """
        z = self._before_activation(x, mean, mean_low, scale, shift, residual)
        return self._xp.astype(activated(z, activation, self._xp), x.dtype, copy=False)

    def _before_activation(
        self, x: Array, mean: Array, mean_low: Array | None, scale: Array, shift: Array, residual: Array | None
    ) -> Array:
        z = _centred(x, mean, mean_low, self._xp) * scale + shift
        return z if residual is None else z + working(residual, self._xp)

    def backward_activation(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        scale: Array,
        shift: Array,
        *,
        activation: str,
        residual: Array | None = None,
        y: Array | None = None,
    ) -> Array:
        """Return dz = dy·act'(z), in the working precision; z from y where its sign is enough, else computed again."""
        z = self._before_activation(x, mean, mean_low, scale, shift, residual) if y is None else y
        return ACTIVATIONS[activation].gradient(working(dy, self._xp), z, self._xp)

    def backward_reduce(
        self, dz: Array, x: Array, reduced: Sequence[int], mean: Array, mean_low: Array | None
    ) -> tuple[Array, Array]:
        """Return Σdz and Σdz·(x−μ)."""
        xp, grad = self._xp, working(dz, self._xp)
        sum_dz = xp.sum(grad, axis=reduced, keepdims=True)
        return sum_dz, xp.sum(grad * _centred(x, mean, mean_low, xp), axis=reduced, keepdims=True)

    def backward_elementwise(
        self,
        dz: Array,
        x: Array,
        mean: Array,
        mean_low: Array | None,
        of_dy: Array,
        of_centred: Array | None = None,
        constant: Array | None = None,
        *,
        weights: Array | None = None,
    ) -> Array:
        """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant)."""
        xp, dx = self._xp, working(dz, self._xp) * of_dy
        if of_centred is None:
            return xp.astype(dx, x.dtype, copy=False)
        through_moments = _centred(x, mean, mean_low, xp) * of_centred + constant
        if weights is not None:
            through_moments = _where_weighted(weights, through_moments * weights, xp)
        return xp.astype(dx + through_moments, x.dtype, copy=False)

    def template(self, facts: Facts) -> None:
        """Return None: there is no library to call."""
        del facts
