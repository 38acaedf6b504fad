"""Batch normalization of NumPy arrays in their own dtype, by the fastest kernel: `reference`'s formulas, at work.

Training and inference, forward and backward, without a framework, and without the layers' weights and virtual batches.
The native kernel serves dense arrays; the others, or an installation without it, are served by NumPy's own operations.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm import kernels, statistics
from batchnorm.activations import check_activation
from batchnorm.conventions import check_epsilon
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.kernels import Kernel, Wanted
from batchnorm.layout import Axis, Plan, plan
from batchnorm.statistics import Statistics
from batchnorm.steps import working_dtype

Array = NDArray[Any]


@dataclass(frozen=True)
class Forward:
    """An output, and what its backward pass needs.

    Attributes:
        y: Output, in the shape and dtype of x.
        mean: μ, kept shape (rank of x, 1 on reduced axes), float32 at least.
        var: σ², the biased variance, likewise.
        count: N, values per feature.
    """

    y: Array
    mean: Array
    var: Array
    count: int
    x: Array
    plan: Plan
    using: Statistics
    scale: Array
    shift: Array
    residual: Array | None
    activation: str | None


@dataclass(frozen=True)
class Gradients:
    """∂ℓ/∂x and ∂ℓ/∂residual in the shape of x; ∂ℓ/∂γ and ∂ℓ/∂β in the kept shape."""

    x: Array
    gamma: Array
    beta: Array
    residual: Array | None


def _entered(x: ArrayLike, axis: Axis, eps: float, activation: str | None) -> tuple[Array, Plan]:
    check_epsilon(eps)
    check_activation(activation)
    values = np.asarray(x)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise DtypeError(f"`x` must be an array of floating-point numbers, got {values.dtype} (`.astype` makes it so)")
    if values.ndim < 2:
        raise ShapeError(f"`x` must have rank ≥ 2, the features and something to reduce over, got {values.shape}")
    return values, plan(values.ndim, axis)


def _kept(name: str, numbers: ArrayLike | None, x: Array, layout: Plan) -> Array | None:
    if numbers is None:
        return None
    kept, found = layout.kept_shape(x.shape), np.asarray(numbers, working_dtype(x.dtype, np))
    if found.size != math.prod(kept):
        raise ShapeError(f"`{name}` must hold a number for each of {math.prod(kept)} features, got shape {found.shape}")
    return found.reshape(kept)


def _added(residual: ArrayLike | None, x: Array) -> Array | None:
    if residual is None:
        return None
    found = np.asarray(residual)
    if found.shape != x.shape or found.dtype != x.dtype:
        given = f"{found.shape} and {found.dtype}"
        raise ShapeError(f"`residual` must have the shape and dtype of x, {x.shape} and {x.dtype}, got {given}")
    return found


def _learned(
    gamma: ArrayLike | None, beta: ArrayLike | None, x: Array, layout: Plan
) -> tuple[Array | None, Array | None]:
    return _kept("gamma", gamma, x, layout), _kept("beta", beta, x, layout)


def train(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: Axis = 1,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> Forward:
    """Normalise a batch by its own statistics: y = act(γ·(x−μ)/√(σ²+ε) + β + residual).

    Args:
        x: Input of any rank ≥ 2, floating point; computed in float32 at least.
        gamma: Scale γ, one number per feature; 1 if None.
        beta: Shift β, likewise; 0 if None.
        eps: ε > 0, inside the root.
        axis: The kept axis or axes.
        activation: None, "relu", "leaky_relu", "silu", "gelu", "tanh" or "sigmoid".
        residual: Added before the activation; the shape and dtype of x.

    Raises:
        DtypeError: if x is not floating point.
        ShapeError: if the rank of x does not admit `axis`, or another array does not fit x.
        ArgumentError: if `eps` or `activation` is out of range.

    Source: Ioffe and Szegedy 2015, algorithm 1.

    >>> train(np.array([[1.0], [3.0]]), eps=1.25).y.ravel().tolist()  # μ = 2, σ² = 1, √(1 + 1.25) = 3/2
    [-0.6666666666666666, 0.6666666666666666]
    """
    values, layout = _entered(x, axis, eps, activation)
    gammas, betas, added = *_learned(gamma, beta, values, layout), _added(residual, values)
    kernel = kernels.select(values, layout, np, residual=added)
    y = None
    if kernel.forward is None:
        moments = kernel.moments(values, layout)
        using = statistics.of_batch(moments, eps, np)
    else:
        y, moments, inv_std, _ = kernel.forward(
            values, layout, gammas, betas, eps=eps, activation=activation, residual=added
        )
        using = Statistics(moments.mean, moments.mean_low, inv_std, 1.0 / statistics.divisor(moments.count, np))
    var = statistics.variance(moments, np)
    return _forward(kernel, values, layout, using, (gammas, betas), y=y, var=var, rest=(added, activation))


def infer(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: Axis = 1,
    activation: str | None = None,
    residual: ArrayLike | None = None,
) -> Forward:
    """Normalise by given statistics, an affine map of each value alone; arguments as in `train`.

    Source: Ioffe and Szegedy 2015, algorithm 2.

    >>> infer(np.array([[5.0]]), mean=[1.0], var=[3.0], gamma=[2.0], beta=[7.0], eps=1.0).y.item()  # 2·(5−1)/√(3+1) + 7
    11.0
    """
    values, layout = _entered(x, axis, eps, activation)
    means, variances = _kept("mean", mean, values, layout), _kept("var", var, values, layout)
    if variances is not None and (variances < 0).any():
        raise ArgumentError(f"`var` must not be negative, got {float(variances.min())}")
    using, added = statistics.of_running(means, variances, eps, np), _added(residual, values)
    kernel, learned = kernels.select(values, layout, np, residual=added), _learned(gamma, beta, values, layout)
    return _forward(kernel, values, layout, using, learned, y=None, var=variances, rest=(added, activation))


def _forward(
    kernel: Kernel, x: Array, layout: Plan, using: Statistics, learned: tuple[Array | None, Array | None], *,
    y: Array | None, var: Any, rest: tuple[Array | None, str | None],
) -> Forward:  # fmt: skip
    scale = statistics.forward_scale(using, learned[0])
    shift, (residual, activation) = statistics.forward_shift(using, *learned, np), rest
    made: Any = y
    if made is None:
        made = kernel.affine(x, using, scale, shift, residual=residual, activation=activation)
    mean, count = using.mean + using.mean_low, layout.count(x.shape)
    return Forward(made, mean, var, count, x, layout, using, scale, shift, residual, activation)


def backward(dy: Array, forward: Forward) -> Gradients:
    """Differentiate `train`, through μ and σ² too, or `infer`, where they are constants.

    Args:
        dy: ∂ℓ/∂y, in the shape and dtype of y.
        forward: What `train` or `infer` has returned.

    Raises:
        ShapeError: if dy has not the shape of y.

    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [5.0, 2.0]])
    >>> backward(np.ones_like(x), train(x)).beta.ravel().tolist()
    [3.0, 3.0]
    """
    f, grad = forward, np.asarray(dy, forward.y.dtype)
    if grad.shape != f.y.shape:
        raise ShapeError(f"`dy` must have the output's shape {f.y.shape}, got {grad.shape}")
    kernel = kernels.select(f.x, f.plan, np, residual=f.residual)
    if kernel.backward is not None:
        wants = Wanted(dx=True, dz=f.residual is not None, sums=True)
        dz, *sums, dx = kernel.backward(
            grad, f.x, f.using, f.scale, f.shift, activation=f.activation, residual=f.residual, wants=wants
        )
    else:
        dz: Any = grad
        if f.activation is not None:
            dz = kernel.backward_activation(
                grad, f.x, f.using, f.scale, f.shift, activation=f.activation, residual=f.residual
            )
        sums = list(kernel.backward_reduce(dz, f.x, f.plan, f.using))
        gamma = f.scale / f.using.inv_std
        coefficients = statistics.backward_coefficients(f.using, gamma, *sums)
        dx = kernel.backward_elementwise(dz, f.x, f.using, coefficients)
    dgamma: Any = statistics.gamma_gradient(f.using, *sums)
    residual: Any = None if f.residual is None else np.asarray(dz, f.residual.dtype)
    return Gradients(np.asarray(dx), dgamma, np.asarray(sums[0]), residual)
