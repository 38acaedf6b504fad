"""The native kernel as operators that torch's dispatcher knows: torch.ops.batchnorm.*, with fake implementations.

For those who must see every operation: torch.compile, fake tensors, dispatch modes. The operators are functional, and
return the moments; the running statistics are updated outside of them. They are defined once, and implemented for each
type of device by a kernel: `register`. A tensor with nothing in it stands for none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batchnorm.kernels import BackwardResult, Facts, ForwardResult
from batchnorm.kernels.eager import precise
from batchnorm.kernels.native.calls import kept_shape

_MEAN = "Tensor mean, Tensor? mean_low"
_SCHEMAS = {
    "moments": "(Tensor x, int[] reduced, Tensor? weights) -> (Tensor, Tensor, Tensor)",
    "affine": f"(Tensor x, {_MEAN}, Tensor scale, Tensor shift, Tensor? residual, str? activation) -> Tensor",
    "forward": (
        "(Tensor x, int[] reduced, Tensor? gamma, Tensor? beta, float eps, str? activation, Tensor? residual, "
        "Tensor? weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "backward": (
        f"(Tensor dy, Tensor x, {_MEAN}, Tensor inv_std, Tensor? per_count, Tensor scale, Tensor? shift, "
        "bool fixed, str? activation, Tensor? residual, Tensor? reserve, Tensor? weights, bool wants_dx, "
        "bool wants_dz, bool wants_sums) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "backward_reduce": f"(Tensor dz, Tensor x, int[] reduced, {_MEAN}) -> (Tensor, Tensor)",
    "backward_elementwise": (
        f"(Tensor dz, Tensor x, {_MEAN}, Tensor of_dy, Tensor? of_centred, Tensor? constant, Tensor? weights) -> Tensor"
    ),
}
_operators: Any = torch.ops.batchnorm
_DEFINED = hasattr(_operators, "moments")  # by an earlier import of this module: torch keeps what it was given
if not _DEFINED:
    for _name, _schema in _SCHEMAS.items():
        torch.library.define(f"batchnorm::{_name}", _schema)


def _or_empty(t: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if t is None else t


def register(device: str, kernel: Any) -> None:
    """Implement the operators for a type of device by a kernel that does a whole pass in one call."""

    def moments(x: Tensor, reduced: Sequence[int], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return kernel.moments(x, reduced, None, weights)

    def affine(
        x: Tensor, mean: Tensor, mean_low: Any, scale: Tensor, shift: Tensor, residual: Any, activation: str | None
    ) -> Tensor:
        return kernel.affine(x, mean, mean_low, scale, shift, residual=residual, activation=activation)

    def forward(
        x: Tensor,
        reduced: Sequence[int],
        gamma: Any,
        beta: Any,
        eps: float,
        activation: Any,
        residual: Any,
        weights: Any,
    ) -> tuple[Tensor, ...]:
        options = {"eps": eps, "activation": activation, "residual": residual, "weights": weights}
        return kernel.forward(x, reduced, gamma, beta, **options, reserves=False)[:5]

    def backward(dy: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        fixed, activation, residual, reserve, weights, wants_dx, wants_dz, wants_sums = arguments[6:]
        dz, *others = kernel.backward(
            dy, x, *arguments[:6], fixed=fixed, activation=activation, residual=residual, reserve=reserve,
            weights=weights, wants_dx=wants_dx, wants_dz=wants_dz, wants_sums=wants_sums,
        )  # fmt: skip
        dz = None if activation is None else dz  # an operator must not return what it was given
        return tuple(_or_empty(t, x) for t in (dz, *others))

    def backward_reduce(dz: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        return kernel.backward_reduce(dz, x, *arguments)

    def backward_elementwise(dz: Tensor, x: Tensor, *arguments: Any) -> Tensor:
        return kernel.backward_elementwise(dz, x, *arguments[:-1], weights=arguments[-1])

    if _DEFINED:
        return
    for function in (moments, affine, forward, backward, backward_reduce, backward_elementwise):
        torch.library.register_kernel(f"batchnorm::{function.__name__}", device, function)


def _numbers(x: Tensor, reduced: Sequence[int], count: int) -> tuple[Tensor, ...]:
    features = kept_shape(x, reduced)
    return tuple(x.new_empty(features, dtype=precise(x, torch)) for _ in range(count))


def _fake_moments(x: Tensor, reduced: Sequence[int], weights: Tensor | None) -> tuple[Tensor, ...]:
    return _numbers(x, reduced, 3)


def _fake_affine(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_forward(x: Tensor, reduced: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *_numbers(x, reduced, 4)


def _fake_backward(dy: Tensor, x: Tensor, mean: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    fixed, activation, _, _, _, wants_dx, wants_dz, wants_sums = arguments[5:]
    dz = torch.empty_like(x) if wants_dz and activation is not None else None
    sums = (torch.empty_like(mean), torch.empty_like(mean)) if wants_sums or not fixed else (None, None)
    return tuple(_or_empty(t, x) for t in (dz, *sums, torch.empty_like(x) if wants_dx else None))


def _fake_backward_reduce(dz: Tensor, x: Tensor, reduced: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    return _numbers(x, reduced, 2)


def _fake_backward_elementwise(dz: Tensor, x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


_FAKES: dict[str, Any] = {
    "moments": _fake_moments,
    "affine": _fake_affine,
    "forward": _fake_forward,
    "backward": _fake_backward,
    "backward_reduce": _fake_backward_reduce,
    "backward_elementwise": _fake_backward_elementwise,
}
if not _DEFINED:
    for _name, _fake in _FAKES.items():
        torch.library.register_fake(f"batchnorm::{_name}", _fake)


class OperatorKernel:
    """The kernel of the device that the tensors are on, each pass an operator."""

    name = "native"
    needs_reserve = False

    def template(self, facts: Facts) -> None:
        """Return None: nobody may call the library past torch."""
        del facts

    def has_reserve(self, activation: str | None, *, residual: bool) -> bool:
        """Return False: how many bits there would be depends on sizes that a tracer need not know."""
        del activation, residual
        return False

    def moments(
        self, x: Tensor, reduced: Sequence[int], count: Any, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean, m2 and the low part of the mean."""
        del count
        return _operators.moments(x, reduced, weights)

    def affine(
        self,
        x: Tensor,
        mean: Tensor,
        mean_low: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        *,
        residual: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Return y = act((x−μ)·scale + shift + residual)."""
        return _operators.affine(x, mean, mean_low, scale, shift, residual, activation)

    def forward(
        self,
        x: Tensor,
        reduced: Sequence[int],
        gamma: Tensor | None,
        beta: Tensor | None,
        *,
        eps: float,
        activation: str | None = None,
        residual: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> ForwardResult:
        """Normalise x by its own statistics."""
        options = activation, residual, weights
        y, mean, mean_low, m2, inv_std = _operators.forward(x, reduced, gamma, beta, eps, *options)
        return ForwardResult(y, mean, mean_low, m2, inv_std, None)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        mean_low: Tensor | None,
        inv_std: Tensor,
        per_count: Tensor | None,
        scale: Tensor,
        shift: Tensor | None,
        *,
        fixed: bool = False,
        activation: str | None = None,
        residual: Tensor | None = None,
        reserve: Tensor | None = None,
        weights: Tensor | None = None,
        wants_dx: bool,
        wants_dz: bool,
        wants_sums: bool,
    ) -> BackwardResult:
        """Return dz, Σdz, Σdz·(x−μ) and dx."""
        dz, sum_dz, sum_dz_centred, dx = _operators.backward(
            dy, x, mean, mean_low, inv_std, per_count, scale, shift, fixed, activation, residual, reserve, weights,
            wants_dx, wants_dz, wants_sums,
        )  # fmt: skip
        sums = (sum_dz, sum_dz_centred) if wants_sums or not fixed else (None, None)
        return BackwardResult(dy if activation is None else dz, *sums, dx if wants_dx else None)

    def backward_activation(
        self,
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        mean_low: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        *,
        activation: str,
        residual: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Return dz = dy·act'(z)."""
        del y
        dz: Any = self.backward(
            dy, x, mean, mean_low, scale, None, scale, shift, fixed=True, activation=activation, residual=residual,
            wants_dx=False, wants_dz=True, wants_sums=False,
        ).dz  # fmt: skip
        return dz

    def backward_reduce(
        self, dz: Tensor, x: Tensor, reduced: Sequence[int], mean: Tensor, mean_low: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return Σdz and Σdz·(x−μ)."""
        return _operators.backward_reduce(dz, x, reduced, mean, mean_low)

    def backward_elementwise(
        self,
        dz: Tensor,
        x: Tensor,
        mean: Tensor,
        mean_low: Tensor | None,
        of_dy: Tensor,
        of_centred: Tensor | None = None,
        constant: Tensor | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return dx = dz·of_dy + w·((x−μ)·of_centred + constant)."""
        return _operators.backward_elementwise(dz, x, mean, mean_low, of_dy, of_centred, constant, weights)
