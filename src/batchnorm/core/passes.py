"""The forward and the backward, composed once for every front-end: moments, statistics, affine.

Synchronisation enters by two hooks: `merge` joins the moments of a batch with those of its other parts, `reduce` adds
up the sums of the backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from batchnorm import statistics
from batchnorm.activations import ACTIVATIONS
from batchnorm.core.plan import CallPlan
from batchnorm.core.policy import Batch, Policy
from batchnorm.kernels import BackwardResult, Kernel, OneCallKernel, one_call
from batchnorm.statistics import Array, Moments, Statistics

Merge = Callable[[Moments], Moments]
Reduce = Callable[[Array, Array], tuple[Array, Array]]


class NormInputs(NamedTuple):
    """The arrays that an output depends on differentiably, and the weights of samples.

    Attributes:
        x: Input.
        weight: γ, in the parameters' shape, or None.
        bias: β, likewise.
        residual: Added before the activation, in the shape of x; or None.
        weights: Of samples, in the rank of x with 1 on the axes of features, in the working precision; or None.
    """

    x: Array
    weight: Array | None = None
    bias: Array | None = None
    residual: Array | None = None
    weights: Array | None = None


class Saved(NamedTuple):
    """What a backward reads of its forward.

    Attributes:
        inputs: Of the forward; without the residual where the backward does not read it.
        policy: Which statistics have normalised.
        moments: Of the batch, merged; None where the running statistics have normalised.
        inv_std: 1/√(σ²+ε), where one call has done the forward; else None.
        reserve: What else the kernel's own backward reads, such as the signs of z; or None.
        y: Output, where the eager kernel reads the sign of z from it; else None.
    """

    inputs: NormInputs
    policy: Policy
    moments: Moments | None = None
    inv_std: Array | None = None
    reserve: Array | None = None
    y: Array | None = None


class Wanted(NamedTuple):
    """Which gradients a backward is asked for."""

    x: bool = True
    weight: bool = True
    bias: bool = True
    residual: bool = False


class Gradients(NamedTuple):
    """∂ℓ/∂x and ∂ℓ/∂residual in the shape of x; ∂ℓ/∂γ and ∂ℓ/∂β in the parameters' shape; None where not wanted.

    That of the residual has the dtype of x or the working precision.
    """

    x: Array | None
    weight: Array | None
    bias: Array | None
    residual: Array | None


def forward(plan: CallPlan, inputs: NormInputs, policy: Policy, *, merge: Merge | None = None) -> tuple[Array, Saved]:
    """Return y = act(γ·(x̂·r + d) + β + residual), and what the backward reads.

    Args:
        plan: Of the call.
        inputs: The arrays.
        policy: Which statistics normalise.
        merge: Joins the moments of x with those of the other parts of the batch.
    """
    x, xp = inputs.x, plan.xp
    gamma, beta = plan.to_features(inputs.weight), plan.to_features(inputs.bias)
    whole = whole_forward(plan, policy)
    if whole is not None and merge is None:
        y, mean, mean_low, m2, inv_std, reserve = whole.forward(
            x, plan.axes.reduced, gamma, beta, eps=plan.eps, activation=plan.activation, residual=inputs.residual,
            weights=inputs.weights,
        )  # fmt: skip
        moments = Moments(plan.weighted_count(inputs.weights, x), mean, m2, mean_low)
        return y, _saved(plan, inputs, policy, moments, y=y, inv_std=inv_std, reserve=reserve)
    moments: Any = None
    if policy.uses_moments:
        moments = moments_of(plan.kernel, plan, inputs)
        moments = moments if merge is None else merge(moments)
    using = policy.statistics(plan, moments)
    y = plan.kernel.affine(
        x, *_mean(using), statistics.forward_scale(using, gamma), statistics.forward_shift(using, gamma, beta, xp),
        residual=inputs.residual, activation=plan.activation,
    )  # fmt: skip
    return y, _saved(plan, inputs, policy, moments, y=y)


def moments_of(kernel: Kernel, plan: CallPlan, inputs: NormInputs) -> Moments:
    """Return the moments of a batch."""
    count = plan.weighted_count(inputs.weights, inputs.x)
    return Moments(count, *kernel.moments(inputs.x, plan.axes.reduced, count, inputs.weights))


def _saved(
    plan: CallPlan, inputs: NormInputs, policy: Policy, moments: Moments | None, *, y: Array, **kept: Any
) -> Saved:
    """Return what the backward reads: the residual, or the signs of z, only where it finds z in no other way."""
    saved = Saved(inputs, policy, moments, **kept, y=y if reads_signs_of_y(plan) else None)
    if not reads_residual(plan, has_reserve=saved.reserve is not None):
        saved = saved._replace(inputs=inputs._replace(residual=None))
    return saved


def reads_residual(plan: CallPlan, *, has_reserve: bool) -> bool:
    """Return whether the backward reads the residual: for the derivative of an activation whose sign is not kept."""
    return plan.activation is not None and not has_reserve and not reads_signs_of_y(plan)


def whole_forward(plan: CallPlan, policy: Policy) -> OneCallKernel | None:
    """Return the kernel that does the whole forward in one call: where the moments of the batch alone normalise it."""
    return plan.one_call if isinstance(policy, Batch) else None


def reads_signs_of_y(plan: CallPlan) -> bool:
    """Return whether the backward reads the signs of z from the output: the native kernel finds z again from x."""
    return _goes_by_sign(plan) and plan.one_call is None


def _goes_by_sign(plan: CallPlan) -> bool:
    return plan.activation is not None and ACTIVATIONS[plan.activation].by_sign


def _mean(using: Statistics) -> tuple[Array, Array | None]:
    return using.mean, None if isinstance(using.mean_low, float) else using.mean_low


def backward(
    plan: CallPlan,
    dy: Array,
    saved: Saved,
    wanted: Wanted,
    *,
    reduce: Reduce | None = None,
    kernel: Kernel | None = None,
    differentiable: bool = False,
) -> Gradients:
    """Return the gradients of a forward; those of γ and β are of the part of the batch that x is.

    Args:
        plan: Of the forward.
        dy: ∂ℓ/∂y.
        saved: What the forward has saved.
        wanted: Which gradients.
        reduce: Adds Σdz and Σdz·(x−μ) to those of the other parts of the batch.
        kernel: By which kernel; None for that of the forward.
        differentiable: Whether the gradients are a function that the framework differentiates again: by the eager
            kernel, and the moments are taken again from x.
    """
    xp, inputs, axes = plan.xp, saved.inputs, plan.axes
    kernel = plan.eager if differentiable else kernel or plan.kernel
    if one_call(kernel) is None and plan.one_call is not None and _goes_by_sign(plan):
        saved = saved._replace(y=_signs(plan, saved))
    using = _statistics_of(plan, saved, kernel if differentiable else None)
    gamma = plan.to_features(inputs.weight)
    sums_wanted = wanted.weight or wanted.bias or (wanted.x and saved.policy.uses_moments)
    whole = one_call(kernel)
    if whole is not None and reduce is None and not (whole.needs_reserve and saved.reserve is None):
        result = _in_one_call(whole, plan, dy, saved, using, wants=(wanted.x, wanted.residual, sums_wanted))
        dz, sum_dz, sum_dz_centred, dx = result
        sums = sum_dz, sum_dz_centred
    else:
        dz = dy
        if plan.activation is not None:
            beta = plan.to_features(inputs.bias)
            dz = kernel.backward_activation(
                dy, inputs.x, *_mean(using), statistics.forward_scale(using, gamma),
                statistics.forward_shift(using, gamma, beta, xp), activation=plan.activation,
                residual=inputs.residual, y=saved.y,
            )  # fmt: skip
        sums = total = (None, None)
        if sums_wanted:
            sums = total = kernel.backward_reduce(dz, inputs.x, axes.reduced, *_mean(using))
            total = sums if reduce is None or not saved.policy.uses_moments else reduce(*sums)
        dx = None
        if wanted.x:
            coefficients = statistics.backward_coefficients(using, gamma, *total)
            dx = kernel.backward_elementwise(dz, inputs.x, *_mean(using), *coefficients, weights=inputs.weights)
    dgamma = dbeta = None
    if sums[0] is not None:
        dgamma, dbeta = statistics.gamma_gradient(using, *sums), sums[0]
        if axes.group_axis is not None:  # γ and β are shared by all groups
            dgamma, dbeta = (xp.sum(d, axis=axes.group_axis, keepdims=True) for d in (dgamma, dbeta))
    return Gradients(
        dx,
        _like_parameter(dgamma, inputs.weight, plan) if wanted.weight else None,
        _like_parameter(dbeta, inputs.bias, plan) if wanted.bias else None,
        dz if wanted.residual else None,
    )


def _in_one_call(
    kernel: OneCallKernel, plan: CallPlan, dy: Array, saved: Saved, using: Statistics, *, wants: tuple[bool, bool, bool]
) -> BackwardResult:
    """Return dz, Σdz, Σdz·(x−μ) and dx, by the kernel's own backward."""
    inputs, (wants_dx, wants_dz, wants_sums) = saved.inputs, wants
    gamma, shift = plan.to_features(inputs.weight), None
    if plan.activation is not None:
        shift = statistics.forward_shift(using, gamma, plan.to_features(inputs.bias), plan.xp)
    counted = statistics.is_number(using.per_count)  # 1/N of every feature, or 0 where the statistics are constants
    per_count = None if counted else using.per_count
    return kernel.backward(
        dy, inputs.x, *_mean(using), using.inv_std, per_count, statistics.forward_scale(using, gamma), shift,
        fixed=counted and not using.per_count, activation=plan.activation, residual=inputs.residual,
        reserve=saved.reserve, weights=inputs.weights, wants_dx=wants_dx, wants_dz=wants_dz, wants_sums=wants_sums,
    )  # fmt: skip


def _like_parameter(gradient: Array | None, parameter: Array | None, plan: CallPlan) -> Array | None:
    if gradient is None or parameter is None:
        return None
    return plan.xp.astype(plan.xp.reshape(gradient, plan.parameter_shape), parameter.dtype, copy=False)


def _statistics_of(plan: CallPlan, saved: Saved, again: Kernel | None) -> Statistics:
    """Return the statistics that the forward has used; by the kernel `again`: as a function of x."""
    policy: Any = saved.policy  # which takes no moments where there are none
    if again is not None and saved.moments is not None:
        return policy.statistics(plan, moments_of(again, plan, saved.inputs))
    if saved.moments is not None and saved.inv_std is not None:
        mean, mean_low = saved.moments.mean, saved.moments.mean_low
        return Statistics(mean, mean_low, saved.inv_std, 1.0 / statistics.divisor(saved.moments.count, plan.xp))
    return policy.statistics(plan, saved.moments)


def _signs(plan: CallPlan, saved: Saved) -> Array:
    """Return numbers of the sign of z, as the kernel of the forward finds it: from act'(z)."""
    inputs = NormInputs(*(None if a is None else statistics.constant(a, plan.xp) for a in saved.inputs))
    fixed = saved._replace(inputs=inputs)
    using = _statistics_of(plan, fixed, None)
    ones = plan.xp.ones_like(inputs.x)
    kernel: Any = plan.one_call
    dz: Any = _in_one_call(kernel, plan, ones, fixed, using, wants=(False, True, False)).dz
    return statistics.constant(dz, plan.xp) - 0.5  # 1 where z > 0; 0, or a small slope, elsewhere
