"""Batch normalization of NumPy arrays in their own dtype, by the fastest kernel: `reference`'s formulas, at work.

Training and inference, forward and backward, without a framework, and without the layers' weights and virtual batches.
The native kernel serves dense arrays; the others, or an installation without it, are served by NumPy's own operations.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from batchnorm import statistics
from batchnorm.activations import check_activation
from batchnorm.conventions import check_epsilon
from batchnorm.core import passes
from batchnorm.core.passes import NormInputs, Saved, Wanted
from batchnorm.core.plan import CallPlan, plan_call, working_dtype
from batchnorm.core.policy import Batch, UseRunning
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.kernels import Facts
from batchnorm.kernels.native.numpy import strides
from batchnorm.layout import Axis, axes_of

Array = NDArray[Any]


@dataclass(frozen=True)
class Forward:
    """An output, and what its backward pass needs.

    Attributes:
        y: Output, in the shape and dtype of x.
        mean: μ, kept shape (rank of x, 1 on reduced axes), float32 at least.
        var: σ², the biased variance, likewise.
        count: N, values per feature.
        plan: Of the call; `plan.kernel.name` says which kernel has served.
        saved: The arrays that the backward reads.
        has_residual: Whether there was one to differentiate by.
    """

    y: Array
    mean: Array
    var: Array
    count: int
    plan: CallPlan
    saved: Saved
    has_residual: bool


@dataclass(frozen=True)
class Gradients:
    """∂ℓ/∂x and ∂ℓ/∂residual in the shape of x; ∂ℓ/∂γ and ∂ℓ/∂β in the kept shape."""

    x: Array
    gamma: Array
    beta: Array
    residual: Array | None


def _floating(x: ArrayLike, *, eps: float, activation: str | None) -> Array:
    check_epsilon(eps)
    check_activation(activation)
    values = np.asarray(x)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise DtypeError(f"`x` must be an array of floating-point numbers, got {values.dtype} (`.astype` makes it so)")
    if values.ndim < 2:
        raise ShapeError(f"`x` must have rank ≥ 2, the features and something to reduce over, got {values.shape}")
    return values


def _planned(x: Array, residual: Array | None, *, axis: Axis, eps: float, activation: str | None) -> CallPlan:
    dtype = x.dtype.name if x.dtype.isnative else str(x.dtype)
    added = None if residual is None else residual.dtype.name
    facts = Facts(axes_of(x.ndim, axis), x.shape, strides(x), dtype, residual=added, activation=activation, eps=eps)
    return plan_call(x, facts, np)


def _per_feature(name: str, numbers: ArrayLike | None, x: Array, axis: Axis) -> Array | None:
    """Return a copy of one number for each feature, in the parameters' shape and the working dtype."""
    if numbers is None:
        return None
    shape, values = axes_of(x.ndim, axis).parameter_shape(x.shape), np.array(numbers, working_dtype(x.dtype, np))
    if values.size != math.prod(shape):
        raise ShapeError(
            f"`{name}` must hold a number for each of {math.prod(shape)} features, got shape {values.shape}"
        )
    return values.reshape(shape)


def _added(residual: ArrayLike | None, x: Array) -> Array | None:
    if residual is None:
        return None
    values = np.asarray(residual)
    if values.shape != x.shape or values.dtype != x.dtype:
        got = f"{values.shape} and {values.dtype}"
        raise ShapeError(f"`residual` must have the shape and dtype of x, {x.shape} and {x.dtype}, got {got}")
    return values


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
    values = _floating(x, eps=eps, activation=activation)
    learned = _per_feature("gamma", gamma, values, axis), _per_feature("beta", beta, values, axis)
    inputs = NormInputs(values, *learned, _added(residual, values))
    call = _planned(values, inputs.residual, axis=axis, eps=eps, activation=activation)
    y, saved = passes.forward(call, inputs, Batch())
    moments: Any = saved.moments
    mean, var = moments.mean + moments.mean_low, statistics.variance(moments, np)
    return Forward(y, mean, var, call.count, call, saved, residual is not None)


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
    values = _floating(x, eps=eps, activation=activation)
    means, variances = _per_feature("mean", mean, values, axis), _per_feature("var", var, values, axis)
    if variances is not None and (variances < 0).any():
        raise ArgumentError(f"`var` must not be negative, got {float(variances.min())}")
    learned = _per_feature("gamma", gamma, values, axis), _per_feature("beta", beta, values, axis)
    inputs = NormInputs(values, *learned, _added(residual, values))
    call = _planned(values, inputs.residual, axis=axis, eps=eps, activation=activation)
    y, saved = passes.forward(call, inputs, UseRunning(means, variances))
    of_call = call.to_features(means), call.to_features(variances)
    return Forward(y, *of_call, call.count, call, saved, residual is not None)


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
    call, saved, grad = forward.plan, forward.saved, np.asarray(dy, forward.y.dtype)
    if grad.shape != forward.y.shape:
        raise ShapeError(f"`dy` must have the output's shape {forward.y.shape}, got {grad.shape}")
    inputs = saved.inputs
    weight = np.ones(call.parameter_shape, call.dtype) if inputs.weight is None else inputs.weight
    bias = np.zeros(call.parameter_shape, call.dtype) if inputs.bias is None else inputs.bias
    saved = saved._replace(inputs=inputs._replace(weight=weight, bias=bias))
    gradients: Any = passes.backward(call, grad, saved, Wanted(residual=forward.has_residual))
    gamma, beta = (np.reshape(g, call.statistics_shape) for g in gradients[1:3])
    residual = np.asarray(gradients.residual, grad.dtype) if forward.has_residual else None
    return Gradients(np.asarray(gradients.x), gamma, beta, residual)
