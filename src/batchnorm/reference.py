"""Batch normalization in float64 NumPy, in the symbols of the paper, step by step: what the tests trust.

Slow, short and literal. The backward pass is the chain rule of section 3 of the paper, one line an equation; it shares
no formula with the fast paths, and finds its axes by itself.

Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import ArrayLike, NDArray

Axis = int | Sequence[int]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Forward:
    """The output of a forward pass, with every intermediate that its backward pass needs.

    Attributes:
        y: Output, the shape of x.
        x_hat: x̂, normalised input, the shape of x.
        mean: μ, kept shape (rank of x, 1 on reduced axes).
        var: σ², the biased variance, kept shape.
        count: N (the m of the paper), values per feature.
    """

    y: Float64
    x_hat: Float64
    mean: Float64
    var: Float64
    count: int
    x: Float64
    gamma: Float64
    eps: float
    reduced: tuple[int, ...]


@dataclass(frozen=True)
class Gradients:
    """∂ℓ/∂x in the shape of x; ∂ℓ/∂γ and ∂ℓ/∂β in the kept shape."""

    x: Float64
    gamma: Float64
    beta: Float64


def _float64(value: Any) -> Float64:
    return np.asarray(value, dtype=np.float64)


def _reduced(rank: int, axis: Axis) -> tuple[int, ...]:
    kept = normalize_axis_tuple(axis, rank)
    return tuple(i for i in range(rank) if i not in kept)


def _per_feature(shape: tuple[int, ...], reduced: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


def _kept(parameter: ArrayLike | None, default: float, shape: tuple[int, ...]) -> Float64:
    return np.full(shape, default) if parameter is None else _float64(parameter).reshape(shape)


def train(
    x: ArrayLike, gamma: ArrayLike | None = None, beta: ArrayLike | None = None, *, eps: float = 1e-5, axis: Axis = 1
) -> Forward:
    """Normalise a batch by its own statistics: algorithm 1 of the paper.

    μ = 1/N Σ x,  σ² = 1/N Σ (x−μ)²,  x̂ = (x−μ)/√(σ²+ε),  y = γ·x̂ + β.

    Args:
        x: Input of any rank ≥ 2 and any real dtype; computed in float64.
        gamma: Scale γ, one number per feature; 1 if None.
        beta: Shift β, likewise; 0 if None.
        eps: ε, inside the root.
        axis: The kept axis or axes.

    Returns:
        The output and every intermediate.

    >>> train([[1.0], [3.0]], eps=1.25).y.ravel().tolist()  # μ = 2, σ² = 1, √(1 + 1.25) = 3/2
    [-0.6666666666666666, 0.6666666666666666]
    """
    values = _float64(x)
    reduced = _reduced(values.ndim, axis)
    shape = _per_feature(values.shape, reduced)
    count = math.prod(values.shape[i] for i in reduced)
    scale, shift = _kept(gamma, 1.0, shape), _kept(beta, 0.0, shape)
    mean = values.sum(axis=reduced, keepdims=True) / count
    var = np.square(values - mean).sum(axis=reduced, keepdims=True) / count
    x_hat = (values - mean) / np.sqrt(var + eps)
    return Forward(scale * x_hat + shift, x_hat, mean, var, count, values, scale, eps, reduced)


def train_backward(dy: ArrayLike, forward: Forward) -> Gradients:
    """Differentiate `train`, through μ and σ² too: the chain rule of section 3 of the paper, line by line."""
    f, axes = forward, forward.reduced
    grad_y = _float64(dy)
    grad_x_hat = grad_y * f.gamma
    centred = f.x - f.mean
    grad_var = (grad_x_hat * centred * -0.5 * (f.var + f.eps) ** -1.5).sum(axis=axes, keepdims=True)
    grad_mean = (-grad_x_hat / np.sqrt(f.var + f.eps)).sum(axis=axes, keepdims=True)
    grad_mean = grad_mean + grad_var * (-2.0 * centred).sum(axis=axes, keepdims=True) / f.count
    grad_x = grad_x_hat / np.sqrt(f.var + f.eps) + grad_var * 2.0 * centred / f.count + grad_mean / f.count
    grad_gamma = (grad_y * f.x_hat).sum(axis=axes, keepdims=True)
    return Gradients(grad_x, grad_gamma, grad_y.sum(axis=axes, keepdims=True))


def infer(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: Axis = 1,
) -> Forward:
    """Normalise by given statistics, an affine map of each value alone: algorithm 2 of the paper.

    >>> infer([[5.0]], mean=[1.0], var=[3.0], gamma=[2.0], beta=[7.0], eps=1.0).y.item()  # 2·(5−1)/√(3+1) + 7
    11.0
    """
    values = _float64(x)
    reduced = _reduced(values.ndim, axis)
    shape = _per_feature(values.shape, reduced)
    count = math.prod(values.shape[i] for i in reduced)
    mu, var_ = _kept(mean, 0.0, shape), _kept(var, 1.0, shape)
    scale, shift = _kept(gamma, 1.0, shape), _kept(beta, 0.0, shape)
    x_hat = (values - mu) / np.sqrt(var_ + eps)
    return Forward(scale * x_hat + shift, x_hat, mu, var_, count, values, scale, eps, reduced)


def infer_backward(dy: ArrayLike, forward: Forward) -> Gradients:
    """Differentiate `infer`: μ and σ² are constants."""
    grad_y, axes = _float64(dy), forward.reduced
    grad_x = grad_y * forward.gamma / np.sqrt(forward.var + forward.eps)
    grad_gamma = (grad_y * forward.x_hat).sum(axis=axes, keepdims=True)
    return Gradients(grad_x, grad_gamma, grad_y.sum(axis=axes, keepdims=True))


def remember(running: ArrayLike, observed: ArrayLike, momentum: float) -> Float64:
    """Return the exponential moving average s ← (1−α)·s + α·observed, α = `momentum`.

    >>> remember(1.0, 3.0, 0.25).item()
    1.5
    """
    return (1.0 - momentum) * _float64(running) + momentum * _float64(observed)


def unbiased(var: ArrayLike, count: int) -> Float64:
    """Return σ²·N/(N−1) for N > 1, and σ² where N ≤ 1: what torch remembers.

    >>> unbiased(3.0, 4).item()
    4.0
    """
    return _float64(var) * (count / (count - 1) if count > 1 else 1.0)
