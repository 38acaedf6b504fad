"""A kernel as the tests call it: with the axes of a plan, and with statistics by name."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from batchnorm import statistics
from batchnorm.kernels import BackwardResult
from batchnorm.kernels.eager import EagerKernel
from batchnorm.layout import Axes
from batchnorm.statistics import Coefficients, Moments, Statistics


class Wanted(NamedTuple):
    """What a backward in one call is asked for."""

    dx: bool
    dz: bool
    sums: bool


def _low(using: Statistics) -> Any:
    return None if isinstance(using.mean_low, float) else using.mean_low


@dataclass(frozen=True)
class Called:
    """A kernel on the arrays of a namespace."""

    kernel: Any
    xp: Any

    @property
    def name(self) -> str:
        return self.kernel.name

    def count(self, x: Any, axes: Axes, weights: Any = None) -> Any:
        if weights is None:
            return axes.count(x.shape)
        along = (*axes.reduced, axes.group_axis)
        shape = tuple(n if i in along else 1 for i, n in enumerate(x.shape))
        return self.xp.sum(self.xp.broadcast_to(weights, shape), axis=axes.reduced, keepdims=True)

    def moments(self, x: Any, axes: Axes, weights: Any = None) -> Moments:
        count = self.count(x, axes, weights)
        return Moments(count, *self.kernel.moments(x, axes.reduced, count, weights))

    def affine(self, x: Any, using: Statistics, scale: Any, shift: Any, **options: Any) -> Any:
        return self.kernel.affine(x, using.mean, _low(using), scale, shift, **options)

    def forward(self, x: Any, axes: Axes, gamma: Any, beta: Any, **options: Any) -> tuple[Any, Moments, Any, Any]:
        y, mean, low, m2, inv_std, reserve = self.kernel.forward(x, axes.reduced, gamma, beta, **options)
        return y, Moments(self.count(x, axes, options.get("weights")), mean, m2, low), inv_std, reserve

    def backward(
        self, dy: Any, x: Any, using: Statistics, scale: Any, shift: Any, *, wants: Wanted, **options: Any
    ) -> BackwardResult:
        counted = statistics.is_number(using.per_count)
        return self.kernel.backward(
            dy, x, using.mean, _low(using), using.inv_std, None if counted else using.per_count, scale, shift,
            fixed=counted and not using.per_count, wants_dx=wants.dx, wants_dz=wants.dz, wants_sums=wants.sums,
            **options,
        )  # fmt: skip

    def backward_activation(self, dy: Any, x: Any, using: Statistics, scale: Any, shift: Any, **options: Any) -> Any:
        return self.kernel.backward_activation(dy, x, using.mean, _low(using), scale, shift, **options)

    def backward_reduce(self, dz: Any, x: Any, axes: Axes, using: Statistics) -> tuple[Any, Any]:
        return self.kernel.backward_reduce(dz, x, axes.reduced, using.mean, _low(using))

    def backward_elementwise(
        self, dz: Any, x: Any, using: Statistics, coefficients: Coefficients, weights: Any = None
    ) -> Any:
        return self.kernel.backward_elementwise(dz, x, using.mean, _low(using), *coefficients, weights=weights)


def eager(xp: Any, *, cascade: bool = False) -> Called:
    """Return the eager kernel of a namespace."""
    return Called(EagerKernel(xp, cascade=cascade), xp)
