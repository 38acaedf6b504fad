"""The native kernel as operators that torch's dispatcher knows: torch.ops.batchnorm.*, with fake implementations.

For those who look on: torch.compile, fake tensors, dispatch modes. The operators are functional, and return the
moments; the running statistics move outside of them. A tensor with nothing in it stands for none.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.library import custom_op

from batchnorm.kernels import dense
from batchnorm.kernels.interface import Backward, Wanted
from batchnorm.statistics import Coefficients, Statistics
from batchnorm.torch.tensors import DENSE


def _numbers(x: Tensor, features: Sequence[int], count: int) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(features, dtype=dense.precise(x, torch)) for _ in range(count))


def _some(t: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if t is None else t


def _given(t: Any) -> Tensor | None:
    return t if isinstance(t, Tensor) else None


@custom_op("batchnorm::moments", mutates_args=(), device_types="cpu")
def moments(x: Tensor, features: Sequence[int], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return μ, Σw(x−μ)² and the low part of μ, in the kept shape `features`."""
    return DENSE.moments(x, tuple(features), weights)


@moments.register_fake
def _(x: Tensor, features: Sequence[int], weights: Tensor | None) -> tuple[Tensor, ...]:
    return _numbers(x, features, 3)


@custom_op("batchnorm::affine", mutates_args=(), device_types="cpu")
def affine(x: Tensor, statistics: Sequence[Tensor | None], residual: Tensor | None, activation: str | None) -> Tensor:
    """Return y = act((x−μ)·scale + shift + residual); `statistics` are mean, mean_low, scale and shift."""
    mean, low, scale, shift = statistics
    return DENSE.affine(x, Statistics(mean, low, None), scale, shift, residual=residual, activation=activation)


@affine.register_fake
def _(x: Tensor, statistics: Sequence[Tensor | None], residual: Tensor | None, activation: str | None) -> Tensor:
    return torch.empty_like(x)


@custom_op("batchnorm::forward", mutates_args=(), device_types="cpu")
def forward(
    x: Tensor,
    features: Sequence[int],
    parameters: Sequence[Tensor | None],
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y, μ, Σw(x−μ)², the low part of μ, and 1/√(σ²+ε); `parameters` are γ and β."""
    options = {"eps": eps, "activation": activation, "residual": residual, "weights": weights}
    return DENSE.forward(x, tuple(features), *parameters, **options, signs=False)[:5]


@forward.register_fake
def _(
    x: Tensor,
    features: Sequence[int],
    parameters: Sequence[Tensor | None],
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    weights: Tensor | None,
) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_numbers(x, features, 4)


@custom_op("batchnorm::backward", mutates_args=(), device_types="cpu")
def backward(
    dy: Tensor,
    x: Tensor,
    statistics: Sequence[Tensor | None],
    fixed: bool,
    residual: Tensor | None,
    weights: Tensor | None,
    activation: str | None,
    wants: Sequence[bool],
    bits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dz, Σdz, Σdz·(x−μ), dx; `statistics`: mean, mean_low, inv_std, per_count, scale, shift.

    The bits are of a forward that nobody looked on at.
    """
    mean, low, inv_std, per_count, scale, shift = statistics
    using = Statistics(mean, low, inv_std, 0.0 if fixed else per_count)
    options = {"activation": activation, "residual": residual, "weights": weights, "bits": bits}
    dz, *others = DENSE.backward(dy, x, using, scale, shift, **options, wants=Wanted(*wants))
    if activation is None:  # an operator must not return what it was given
        dz = None
    dz, first, second, dx = (_some(t, x) for t in (dz, *others))
    return dz, first, second, dx


@backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    statistics: Sequence[Tensor | None],
    fixed: bool,
    residual: Tensor | None,
    weights: Tensor | None,
    activation: str | None,
    wants: Sequence[bool],
    bits: Tensor | None = None,
) -> tuple[Tensor, ...]:
    mean, wanted = statistics[0], Wanted(*wants)
    features = () if mean is None else mean.shape
    dz = torch.empty_like(x) if wanted.dz and activation is not None else None
    sums = (None, None) if fixed and not wanted.sums else _numbers(x, features, 2)
    return tuple(_some(t, x) for t in (dz, *sums, torch.empty_like(x) if wanted.dx else None))


@custom_op("batchnorm::backward_reduce", mutates_args=(), device_types="cpu")
def backward_reduce(
    dz: Tensor, x: Tensor, features: Sequence[int], mean: Tensor, mean_low: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return Σdz and Σdz·(x−μ)."""
    return DENSE.backward_reduce(dz, x, tuple(features), Statistics(mean, mean_low, None))


@backward_reduce.register_fake
def _(dz: Tensor, x: Tensor, features: Sequence[int], mean: Tensor, mean_low: Tensor | None) -> tuple[Tensor, ...]:
    return _numbers(x, features, 2)


@custom_op("batchnorm::backward_elementwise", mutates_args=(), device_types="cpu")
def backward_elementwise(dz: Tensor, x: Tensor, statistics: Sequence[Tensor | None], weights: Tensor | None) -> Tensor:
    """Return dx; `statistics` are mean, mean_low, and the three coefficients of `Coefficients`."""
    mean, low, *coefficients = statistics
    return DENSE.backward_elementwise(dz, x, Statistics(mean, low, None), Coefficients(*coefficients), weights)


@backward_elementwise.register_fake
def _(dz: Tensor, x: Tensor, statistics: Sequence[Tensor | None], weights: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _forward(x: Tensor, features: Any, gamma: Any, beta: Any, **options: Any) -> tuple[Any, ...]:
    given = (options.get(name) for name in ("eps", "activation", "residual", "weights"))
    return *forward(x, features, [gamma, beta], *given), None


def _affine(x: Tensor, using: Statistics, scale: Tensor, shift: Tensor, **options: Any) -> Tensor:
    arrays = [using.mean, _given(using.mean_low), scale, shift]
    return affine(x, arrays, options.get("residual"), options.get("activation"))


def _backward(dy: Tensor, x: Tensor, using: Statistics, *coefficients: Any, wants: Wanted, **options: Any) -> Backward:
    fixed = isinstance(using.per_count, float) and using.per_count == 0.0
    arrays = [using.mean, _given(using.mean_low), using.inv_std, _given(using.per_count), *coefficients]
    given = (options.get(name) for name in ("residual", "weights", "activation"))
    dz, first, second, dx = backward(dy, x, arrays, fixed, *given, list(wants), options.get("bits"))
    without = fixed and not wants.sums
    sums = (None, None) if without else (first, second)
    return Backward(dy if options.get("activation") is None else dz, *sums, dx if wants.dx else None)


def _backward_activation(dy: Tensor, x: Tensor, using: Statistics, *coefficients: Any, **options: Any) -> Tensor:
    wants = Wanted(dx=False, dz=True, sums=False)
    found: Any = _backward(dy, x, using._replace(per_count=0.0), *coefficients, wants=wants, **options).dz
    return found


def _backward_reduce(dz: Tensor, x: Tensor, features: Any, using: Statistics) -> tuple[Tensor, Tensor]:
    return backward_reduce(dz, x, features, using.mean, _given(using.mean_low))


def _backward_elementwise(
    dz: Tensor, x: Tensor, using: Statistics, coefficients: Coefficients, weights: Tensor | None = None
) -> Tensor:
    return backward_elementwise(dz, x, [using.mean, _given(using.mean_low), *coefficients], weights)


KERNEL = dense.kernel(
    xp,
    SimpleNamespace(
        moments=moments,
        forward=_forward,
        affine=_affine,
        backward=_backward,
        backward_activation=_backward_activation,
        backward_reduce=_backward_reduce,
        backward_elementwise=_backward_elementwise,
    ),
)
