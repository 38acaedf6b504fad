"""The native kernel as the front-ends call it: on arrays that know their address, their strides and their dtype."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from batchnorm.activations import ACTIVATIONS
from batchnorm.kernels.eager import counted
from batchnorm.kernels.interface import Backward, Forward, Kernel, Wanted
from batchnorm.kernels.native import Arrangement, apart, arrangement, bits_size, run
from batchnorm.layout import Plan
from batchnorm.statistics import Array, Coefficients, Moments, Namespace, Statistics


@dataclass(frozen=True)
class Arrays:
    """What the native kernel asks of a framework.

    Attributes:
        xp: The array namespace.
        address: `(array) -> int`.
        strides: `(array) -> tuple`, in elements.
        dtype: `(array) -> str`, a name of `native.DTYPES`.
        empty: `(shape, like, dtype) -> array`, contiguous.
        empty_like: `(array) -> array` that lies in memory as the given one does, which is dense.
        copied: `(array, into) -> into`, with the values of the array.
        contiguous: `(array) -> array`.
        parallel_for: The address of a `bn_parallel_for`; 0 for the library's own threads.
    """

    xp: Namespace
    address: Callable[[Array], int]
    strides: Callable[[Array], tuple[int, ...]]
    dtype: Callable[[Array], str]
    empty: Callable[[tuple[int, ...], Array, Any], Array]
    empty_like: Callable[[Array], Array]
    copied: Callable[[Array, Array], Array]
    contiguous: Callable[[Array], Array]
    parallel_for: int = 0

    def arranged(self, x: Array, features: tuple[int, ...], weights: Array | None) -> Arrangement:
        """Return how x lies."""
        found = arrangement(tuple(x.shape), self.strides(x), features, apart(features, weights))
        if isinstance(found, str):
            raise NotImplementedError(f"the native kernel does not serve this: {found}")
        return found

    def like(self, array: Array | None, x: Array) -> Array | None:
        """Return the array laid out as x is, itself where it is already."""
        if array is None or (array.dtype == x.dtype and self.strides(array) == self.strides(x)):
            return array
        return self.copied(array, self.empty_like(x))

    def whole(self, numbers: Any, features: tuple[int, ...]) -> Array | None:
        """Return numbers of features, one for each, side by side; None for none, and for the 0 of a low part."""
        if numbers is None or isinstance(numbers, float):
            return None
        return self.contiguous(numbers if tuple(numbers.shape) == features else self.xp.broadcast_to(numbers, features))

    def weighed(self, weights: Array | None, x: Array, lies: Arrangement) -> Array | None:
        """Return weights of samples one after another as in memory: along all axes but those of channels."""
        if weights is None:
            return None
        shape = tuple(n if i in lies.weighed else 1 for i, n in enumerate(x.shape))
        return self.contiguous(self.xp.permute_dims(self.xp.broadcast_to(weights, shape), lies.order))

    def at(self, array: Array | None) -> int:
        """Return the address of an array, 0 for none."""
        return 0 if array is None else self.address(array)


def precise(x: Array, xp: Namespace) -> Any:
    """Return the working dtype."""
    return xp.float64 if x.dtype == xp.float64 else xp.float32


def moments(a: Arrays, x: Array, features: tuple[int, ...], weights: Array | None = None) -> tuple[Array, Array, Array]:
    """Return μ, Σw(x−μ)² and the low part of μ."""
    dtype = precise(x, a.xp)
    lies = a.arranged(x, features, weights)
    mean, mean_low, m2 = (a.empty(features, x, dtype) for _ in range(3))
    along = a.weighed(weights, x, lies)
    run(
        "moments", lies.sizes, a.dtype(x), parallel_for=a.parallel_for,
        x=a.address(x), weights=a.at(along), mean=a.address(mean), mean_low=a.address(mean_low), m2=a.address(m2),
    )  # fmt: skip
    return mean, m2, mean_low


def forward(
    a: Arrays,
    x: Array,
    features: tuple[int, ...],
    gamma: Array | None,
    beta: Array | None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Array | None = None,
    weights: Array | None = None,
    signs: bool = True,
) -> tuple[Array, Array, Array, Array, Array, Array | None]:
    """Return y = act(γ·(x−μ)/√(σ²+ε) + β + residual), the mean, m2, the low part of the mean, 1/√(σ²+ε), and `bits`.

    Each channel is finished while it is in the cache. The bits are the signs of z where the backward cannot find them
    from x alone and asks for no more, unless `signs` says that nobody wants them.
    """
    dtype = precise(x, a.xp)
    lies = a.arranged(x, features, weights)
    y, mean, mean_low, m2, inv_std = a.empty_like(x), *(a.empty(features, x, dtype) for _ in range(4))
    bits = None
    if signs and residual is not None and activation is not None and ACTIVATIONS[activation].by_sign:
        bits = a.empty((bits_size(lies.sizes, a.dtype(x)),), x, a.xp.int16)
    gamma, beta, along = a.whole(gamma, features), a.whole(beta, features), a.weighed(weights, x, lies)
    residual = a.like(residual, x)
    run(
        "forward", lies.sizes, a.dtype(x), activation=activation, parallel_for=a.parallel_for, eps=eps,
        x=a.address(x), residual=a.at(residual), weights=a.at(along), y=a.address(y), bits=a.at(bits),
        mean=a.address(mean), mean_low=a.address(mean_low), m2=a.address(m2), inv_std=a.address(inv_std),
        scale=a.at(gamma), shift=a.at(beta),
    )  # fmt: skip
    return y, mean, m2, mean_low, inv_std, bits


def affine(
    a: Arrays,
    x: Array,
    statistics: Statistics,
    scale: Array,
    shift: Array,
    *,
    residual: Array | None = None,
    activation: str | None = None,
) -> Array:
    """Return y = act((x−μ)·scale + shift + residual)."""
    features = _features(statistics, scale)
    lies, y, residual = a.arranged(x, features, None), a.empty_like(x), a.like(residual, x)
    mean, mean_low, scale, shift = (a.whole(n, features) for n in (*statistics[:2], scale, shift))
    run(
        "affine", lies.sizes, a.dtype(x), activation=activation, parallel_for=a.parallel_for,
        x=a.address(x), residual=a.at(residual), y=a.address(y),
        mean=a.at(mean), mean_low=a.at(mean_low), scale=a.at(scale), shift=a.at(shift),
    )  # fmt: skip
    return y


def _features(statistics: Statistics, scale: Array) -> tuple[int, ...]:
    return tuple(max(n, m) for n, m in zip(statistics.mean.shape, scale.shape, strict=True))


def backward(
    a: Arrays,
    dy: Array,
    x: Array,
    statistics: Statistics,
    scale: Array,
    shift: Array,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    bits: Array | None = None,
    weights: Array | None = None,
    wants: Wanted,
) -> Backward:
    """Return dz, Σdz, Σdz·(x−μ) and dx, each channel while it is in the cache; without an activation dz is dy."""
    features, dtype = _features(statistics, scale), precise(x, a.xp)
    lies, fixed = a.arranged(x, features, weights), isinstance(statistics.per_count, float) and not statistics.per_count
    dy, residual, along = a.like(dy, x), a.like(residual, x), a.weighed(weights, x, lies)
    dx = a.empty_like(x) if wants.dx else None
    dz = a.empty_like(x) if wants.dz and activation is not None else None
    first, second = (None if fixed and not wants.sums else a.empty(features, x, dtype) for _ in range(2))
    mean, mean_low, inv_std, per_count = (a.whole(n, features) for n in statistics[:4])
    scale, shift = a.whole(scale, features), a.whole(shift, features)
    run(
        "backward", lies.sizes, a.dtype(x), activation=activation, parallel_for=a.parallel_for, fixed=fixed,
        x=a.address(x), dy=a.at(dy), residual=a.at(residual), weights=a.at(along), bits=a.at(bits),
        dx=a.at(dx), dz=a.at(dz), mean=a.at(mean), mean_low=a.at(mean_low), inv_std=a.at(inv_std),
        scale=a.at(scale), shift=a.at(shift), per_count=a.at(per_count),
        sum_dz=a.at(first), sum_dz_centred=a.at(second),
    )  # fmt: skip
    return Backward(dy if activation is None else dz, first, second, dx)


def backward_activation(
    a: Arrays,
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
    """Return dz = dy·act'(z) in the dtype of x; z is computed again."""
    del y
    fixed, wants = statistics._replace(per_count=0.0), Wanted(dx=False, dz=True, sums=False)
    return backward(a, dy, x, fixed, scale, shift, activation=activation, residual=residual, wants=wants).dz


def backward_reduce(
    a: Arrays, dz: Array, x: Array, features: tuple[int, ...], statistics: Statistics
) -> tuple[Array, Array]:
    """Return Σdz and Σdz·(x−μ)."""
    dtype = precise(x, a.xp)
    lies, dz = a.arranged(x, features, None), a.like(dz, x)
    sums = a.empty(features, x, dtype), a.empty(features, x, dtype)
    mean, mean_low = (a.whole(n, features) for n in statistics[:2])
    run(
        "backward_reduce", lies.sizes, a.dtype(x), parallel_for=a.parallel_for, x=a.address(x), dy=a.at(dz),
        mean=a.at(mean), mean_low=a.at(mean_low), sum_dz=a.address(sums[0]), sum_dz_centred=a.address(sums[1]),
    )  # fmt: skip
    return sums


def backward_elementwise(
    a: Arrays,
    dz: Array,
    x: Array,
    statistics: Statistics,
    coefficients: Coefficients,
    weights: Array | None = None,
) -> Array:
    """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant)."""
    features = _features(statistics, coefficients.of_dy)
    lies, dz, dx = a.arranged(x, features, weights), a.like(dz, x), a.empty_like(x)
    mean, mean_low, scale, of_centred, constant = (a.whole(n, features) for n in (*statistics[:2], *coefficients))
    along = a.weighed(weights, x, lies)
    run(
        "backward_elementwise", lies.sizes, a.dtype(x), parallel_for=a.parallel_for, x=a.address(x), dy=a.at(dz),
        dx=a.address(dx), weights=a.at(along), mean=a.at(mean), mean_low=a.at(mean_low), scale=a.at(scale),
        of_centred=a.at(of_centred), constant=a.at(constant),
    )  # fmt: skip
    return dx


def kernel(xp: Namespace, implementation: Any) -> Kernel:
    """Return the native kernel, made of the functions that `bound` returns or their like."""

    def of_moments(x: Array, plan: Plan, weights: Array | None = None) -> Moments:
        mean, m2, mean_low = implementation.moments(x, plan.kept_shape(x.shape), weights)
        return Moments(counted(x, xp, plan, weights), mean, m2, mean_low)

    def at_once(x: Array, plan: Plan, gamma: Array, beta: Array, **options: Any) -> Forward:
        y, mean, m2, mean_low, *more = implementation.forward(x, plan.kept_shape(x.shape), gamma, beta, **options)
        return Forward(y, Moments(counted(x, xp, plan, options.get("weights")), mean, m2, mean_low), *more)

    def reduce(dz: Array, x: Array, plan: Plan, statistics: Statistics) -> tuple[Array, Array]:
        return implementation.backward_reduce(dz, x, plan.kept_shape(x.shape), statistics)

    return Kernel(
        "native", "", of_moments, implementation.affine, implementation.backward_activation, reduce,
        implementation.backward_elementwise, at_once, implementation.backward,
    )  # fmt: skip


def bound(a: Arrays) -> SimpleNamespace:
    """Return the functions of this module for the arrays of one framework."""
    functions = moments, forward, affine, backward, backward_activation, backward_reduce, backward_elementwise
    return SimpleNamespace(**{f.__name__: partial(f, a) for f in functions})
