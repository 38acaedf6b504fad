"""A call before any value is read: its axes bound to a shape, and the kernel that serves it."""

import math
from dataclasses import dataclass, replace
from typing import Any

from batchnorm import kernels
from batchnorm.kernels import Facts, Kernel, Mode, OneCallKernel
from batchnorm.kernels.eager import EagerKernel
from batchnorm.layout import Axes
from batchnorm.statistics import Array, Namespace, bits_of, is_number, sizes

_REMEMBERED = 4096  # plans


@dataclass(frozen=True, eq=False)
class CallPlan:
    """Everything about a call that follows from the shape and memory layout of its input and the options of the layer.

    Attributes:
        facts: What is known of the call, with ε and the activation.
        count: N, the number of values per feature.
        dtype: The working dtype of the namespace: float32, or float64 for float64 input.
        statistics_shape: The kept shape, 1 on reduced axes: that of means and variances.
        feature_shape: The same with 1 on the axis of groups too: that of γ and β, which all groups share.
        parameter_shape: The shape in which γ, β and the running statistics are given.
        xp: The array namespace.
        kernel: The fastest that serves the call.
        reason: Why no faster one does; "" where it is the fastest.
        template: A call of the native library with all but its addresses, where one call does a whole pass; or None.
    """

    facts: Facts
    count: Any
    dtype: Any
    statistics_shape: tuple[Any, ...]
    feature_shape: tuple[Any, ...]
    parameter_shape: tuple[Any, ...]
    xp: Namespace
    kernel: Kernel
    reason: str
    template: Any = None

    def __deepcopy__(self, memo: Any) -> "CallPlan":
        """Return the plan itself, which nobody changes."""
        return self

    @property
    def note(self) -> str | None:
        """Return which kernel serves, and why no faster one does; None where it is the fastest."""
        return f"{self.kernel.name}: {self.reason}" if self.reason else None

    @property
    def axes(self) -> Axes:
        """Return which axes are kept and which are reduced."""
        return self.facts.axes

    @property
    def eps(self) -> float:
        """Return ε."""
        return self.facts.eps

    @property
    def activation(self) -> str | None:
        """Return the name of the activation, or None."""
        return self.facts.activation

    @property
    def eager(self) -> EagerKernel:
        """Return the kernel in framework operations, which a framework can differentiate and a compiler fuse."""
        return kernels.registered(self.xp).eager

    def by_eager(self) -> "CallPlan":
        """Return the same plan on the eager kernel."""
        return replace(self, kernel=self.eager, template=None)

    @property
    def one_call(self) -> OneCallKernel | None:
        """Return the kernel where it does a whole pass in one call, else None."""
        return kernels.one_call(self.kernel)

    def to_features(self, parameter: Array | None) -> Any:
        """Return γ, β or a running statistic in a shape that broadcasts against x, and the working dtype."""
        if parameter is None:
            return None
        return self.xp.astype(self.xp.reshape(parameter, self.feature_shape), self.dtype, copy=False)

    def weighted_count(self, weights: Array | None, x: Array) -> Any:
        """Return N, or Σw for each group, in the rank of x with 1 on its axes of features."""
        if weights is None:
            return self.count
        counted = (*self.axes.reduced, self.axes.group_axis)  # weights may be of size 1 along any axis
        shape = tuple(n if i in counted else 1 for i, n in enumerate(sizes(x, self.xp)))
        return self.xp.sum(self.xp.broadcast_to(weights, shape), axis=self.axes.reduced, keepdims=True)


def working_dtype(dtype: Any, xp: Namespace) -> Any:
    """Return the dtype of moments, γ, β and the arithmetic on them: float32 at least."""
    return xp.float64 if bits_of(dtype, xp) > 32 else xp.float32


def plan_call(x: Array, facts: Facts, xp: Namespace) -> CallPlan:
    """Return the plan of a call with all that `facts` say; one that was made before, where all sizes are numbers."""
    if facts.mode in (Mode.COMPILE, Mode.EXPORT) or not all(type(n) is int for n in facts.shape):
        return _bind(x, facts, xp)  # a cache that fills while a compiler traces makes it trace again
    plans = kernels.registered(xp).plans
    plan = plans.get(facts)
    if plan is None:
        if len(plans) >= _REMEMBERED:
            plans.clear()
        plan = plans[facts] = _bind(x, facts, xp)
    return plan


def _bind(x: Array, facts: Facts, xp: Namespace) -> CallPlan:
    axes, shape, dtype = facts.axes, sizes(x, xp), working_dtype(x.dtype, xp)
    kernel, reason = kernels.select(facts, xp)
    count = math.prod([shape[i] for i in axes.reduced])
    return CallPlan(
        facts,
        count if is_number(count) else xp.astype(count, dtype),
        dtype,
        axes.kept_shape(shape),
        axes.feature_shape(shape),
        axes.parameter_shape(shape),
        xp,
        kernel,
        reason,
        kernel.template(facts),
    )
