"""The middle step: from the moments of a batch to the statistics that normalise it, and the running statistics.

Everything here is arithmetic on per-feature arrays, written with operators and an array namespace `xp` (NumPy, torch
through array-api-compat, jax.numpy, keras.ops), so that no framework can drift from another. Nothing is done in place.

Every option of the layer is a choice of `Statistics`: those of the batch, of each of its groups, the running ones, or
those of the batch corrected towards them. What the two passes over the data then need is the same few coefficients.

A count of zero stands for a batch without data: all its samples have weight zero, or it is not finite. It does not
change the running statistics or the moments it is merged with, and it is normalised by the running statistics.

Sources: Ioffe and Szegedy 2015, algorithms 1 and 2; Chan, Golub and LeVeque 1979 for `merge`; Ioffe 2017 for
`correction`.
"""

import math
from typing import Any, NamedTuple

from batchnorm.conventions import Estimator

Array = Any
Namespace = Any

ONE = 1.0 + 2.0**-10  # weights that sum to one do so up to rounding: N/(N−1) would make millions of it


class Moments(NamedTuple):
    """The moments of each feature of a batch.

    The mean is the unevaluated sum `mean + mean_low`: at a mean of 10⁶ standard deviations one float32 cannot hold it
    well enough to subtract it, two can. Neither part is the mean by itself: `mean` need only be near enough to the
    values for the difference to be small.

    Attributes:
        count: N, the number of values per feature (a number, or an array where it differs).
        mean: High part of μ: the rounded μ (native kernel), or a value of the data (eager kernel).
        m2: Σ(x−μ)², never Σx² − Nμ².
        mean_low: μ − `mean`, in the working precision.
    """

    count: Array
    mean: Array
    m2: Array
    mean_low: Array = 0.0


class Statistics(NamedTuple):
    """The numbers that normalise an input: x̂ = (((x − mean) − mean_low)·inv_std)·r + d.

    Attributes:
        mean: High part of the mean, as in `Moments`.
        mean_low: What is left of the mean; zero where one number holds it.
        inv_std: 1/√(σ²+ε).
        per_count: 1/N where gradients flow through μ and σ², 0 where these are constants.
        r: Correction of the scale by renormalization, a constant; 1 without.
        d: Correction of the shift, likewise; 0 without.
    """

    mean: Array
    mean_low: Array
    inv_std: Array
    per_count: Array = 0.0
    r: Array = 1.0
    d: Array = 0.0


class Observed(NamedTuple):
    """What the running statistics take in of a batch: μ and the estimate of σ², or their means over groups.

    `count` is N, and zero where the batch has no data. The mean is the sum `mean + mean_low`.
    """

    count: Array
    mean: Array
    var: Array
    mean_low: Array = 0.0


class Running(NamedTuple):
    """The running statistics; the last three exist under renormalization only.

    Attributes:
        mean: EMA of μ.
        var: EMA of the estimate of σ²; under renormalization max(`stddev`² − ε, 0).
        stddev: EMA of σ = √(σ²+ε) with the momentum of the layer.
        renorm_mean: M, EMA of μ with the momentum of renormalization.
        renorm_stddev: S, EMA of σ, likewise.
    """

    mean: Array
    var: Array
    stddev: Array | None = None
    renorm_mean: Array | None = None
    renorm_stddev: Array | None = None


class Coefficients(NamedTuple):
    """The elementwise pass of the backward: dx = dy·of_dy + w·((x−μ)·of_centred + constant).

    The last two are None where the statistics are constants: dx = dy·of_dy.
    """

    of_dy: Array
    of_centred: Array | None = None
    constant: Array | None = None


def is_number(count: Array) -> bool:
    """Return whether this is an int, a float, or the symbol of one while a framework traces, and no array."""
    return not hasattr(type(count), "dtype")


def sizes(x: Array, xp: Namespace) -> tuple[Any, ...]:
    """Return the shape of x; a size that a framework learns only at run time is a 0-d array."""
    return xp.shape(x) if hasattr(xp, "shape") else x.shape


def constant(a: Array, xp: Namespace) -> Array:
    """Return an array as a constant for the gradient; a number is one."""
    if hasattr(xp, "stop_gradient") and not is_number(a):
        return xp.stop_gradient(a)
    return a.detach() if hasattr(a, "detach") else a


def bits_of(dtype: Any, xp: Namespace) -> int:
    """Return how many bits a number of a floating-point dtype has; bfloat16 of NumPy is none that `finfo` knows."""
    return 16 if getattr(dtype, "name", "") == "bfloat16" else xp.finfo(dtype).bits


def divisor(count: Array, xp: Namespace) -> Array:
    """Return N to divide by, and 1 where N = 0: 0/1 is what an empty sum divided by its count should be."""
    if is_number(count):
        return count or 1
    return xp.where(count > 0, count, xp.ones_like(count))


def merge(a: Moments, b: Moments, xp: Namespace) -> Moments:
    """Return the moments of two batches taken together, whatever their sizes.

    n = n_a + n_b,  δ = μ_b − μ_a,  μ = μ_a + δ·n_b/n,  m2 = m2_a + m2_b + δ²·n_a·n_b/n.

    Exact up to rounding: any split of the data gives the same answer. A batch with a count of zero changes nothing.

    Source: Chan, Golub and LeVeque 1979, eq. 2.1.

    >>> import numpy as np
    >>> merge(Moments(2, 1.0, 2.0), Moments(1, 4.0, 0.0), np)[:3]  # 0, 2 and 4
    (3, 2.0, 8.0)
    """
    count = a.count + b.count
    share = b.count / divisor(count, xp)
    delta, delta_low = b.mean - a.mean, b.mean_low - a.mean_low
    step = delta * share
    mean = a.mean + step
    low = (a.mean_low + delta_low * share) + (step - (mean - a.mean))  # what rounding the mean left over
    delta = delta + delta_low
    return Moments(count, mean, a.m2 + b.m2 + delta * delta * (a.count * share), low)


def variance(moments: Moments, xp: Namespace) -> Array:
    """Return σ² = m2/N, the biased variance: what the output is normalised with."""
    return moments.m2 / divisor(moments.count, xp)


def observed_variance(moments: Moments, estimator: Estimator, xp: Namespace) -> Array:
    """Return the variance that the running statistics take in: σ²·N/(N−1) if unbiased and N > 1, else σ².

    Differs:
        torch remembers the unbiased one; Keras 3 and Flax the biased one.

    >>> import numpy as np
    >>> x = Moments(4, 0.0, 12.0)
    >>> observed_variance(x, "unbiased", np), observed_variance(x, "biased", np)
    (4.0, 3.0)
    >>> observed_variance(Moments(1, 0.0, 0.0), "unbiased", np)
    0.0
    """
    count = moments.count
    if estimator == "biased":
        return variance(moments, xp)
    if is_number(count):
        return moments.m2 / (count - 1 if count > 1 else divisor(count, xp))
    return moments.m2 / xp.where(count > ONE, count - 1, divisor(count, xp))


def observed(moments: Moments, estimator: Estimator, xp: Namespace, group_axis: int | None = None) -> Observed:
    """Return what the running statistics take in of a batch; over groups, the means of the μ and σ² of each.

    Groups without data are left out of the means.

    Args:
        moments: Of the batch, or of each group along `group_axis`.
        estimator: "unbiased" or "biased".
        xp: The array namespace.
        group_axis: The axis of groups; None where the batch is one.
    """
    mean, low, var = moments.mean, moments.mean_low, observed_variance(moments, estimator, xp)
    if group_axis is None:
        return Observed(moments.count, mean, var, low)
    if is_number(moments.count):
        share = 1.0 / mean.shape[group_axis]
        total = moments.count
    else:
        has_data = xp.where(moments.count > 0, xp.ones_like(moments.count), xp.zeros_like(moments.count))
        total = xp.sum(moments.count, axis=group_axis, keepdims=True)
        share = has_data / divisor(xp.sum(has_data, axis=group_axis, keepdims=True), xp)

    def average(a: Array) -> Array:
        return xp.sum(share * a, axis=group_axis, keepdims=True)

    high = average(mean)
    return Observed(total, high, average(var), average((mean - high) + low))


def updated(running: Array, observed: Array, momentum: Array, xp: Namespace) -> Array:
    """Return s + α·(o − s), where α = `momentum` is the weight of the NEW observation o; so does `moved` of csrc/.

    Where α ≥ ½ the same number is written o + (1−α)·(s − o). Each of the two forms is exact at its end: α = 0 leaves s,
    α = 1 gives o, however far apart s and o are.

    Differs:
        Keras and Flax write s·momentum + o·(1−momentum): their momentum is 1−α.

    >>> import numpy as np
    >>> updated(1.0, 3.0, 0.25, np)
    1.5
    >>> s, o = np.float32(5000.0), np.float32(1e-4)
    >>> updated(s, o, 1.0, np) == o  # s + 1·(o − s) is 0 in float32
    np.True_
    """
    change = observed - running
    if is_number(momentum):
        return running + momentum * change if momentum < 0.5 else observed - (1.0 - momentum) * change
    return xp.where(momentum < 0.5, running + momentum * change, observed - (1.0 - momentum) * change)


def remembered(
    running: Running, observed: Observed, momentum: Array, xp: Namespace, *, renorm: tuple[float, float] | None = None
) -> Running:
    """Return the running statistics after a batch: s ← s + α·(observed − s).

    Args:
        running: Before the batch.
        observed: What they take in of the batch; under renormalization by the biased estimator.
        momentum: α, the weight of the new observation.
        xp: The array namespace.
        renorm: (α of M and S, ε) under renormalization.
    """
    batch_mean = observed.mean + observed.mean_low
    mean = updated(running.mean, batch_mean, momentum, xp)
    if renorm is None:
        return Running(mean, updated(running.var, observed.var, momentum, xp))
    alpha, eps = renorm
    sigma = xp.sqrt(observed.var + eps)
    stddev = updated(running.stddev, sigma, momentum, xp)
    var = xp.maximum(stddev * stddev - eps, xp.zeros_like(stddev))
    renorm_mean = updated(running.renorm_mean, batch_mean, alpha, xp)
    return Running(mean, var, stddev, renorm_mean, updated(running.renorm_stddev, sigma, alpha, xp))


def of_batch(moments: Moments, eps: float, xp: Namespace) -> Statistics:
    """Return the statistics of the batch itself: training."""
    inv_std = 1.0 / xp.sqrt(variance(moments, xp) + eps)
    return Statistics(moments.mean, moments.mean_low, inv_std, 1.0 / divisor(moments.count, xp))


def of_running(running_mean: Array, running_var: Array, eps: float, xp: Namespace) -> Statistics:
    """Return the remembered statistics: inference, where the layer is an affine map."""
    return Statistics(running_mean, 0.0, 1.0 / xp.sqrt(running_var + eps))


def with_fallback(
    batch: Statistics, count: Array, fallback: Statistics, *, max_fallback_count: int, xp: Namespace
) -> Statistics:
    """Return the statistics of the batch where its count exceeds `max_fallback_count`, else the fallback's."""
    has_data = count > max_fallback_count

    def choose(a: Array, b: Array) -> Array:
        return a if isinstance(a, float) else xp.where(has_data, a, xp.zeros_like(a) + b)  # r = 1, d = 0 in both

    return Statistics(*(choose(a, b) for a, b in zip(batch, fallback, strict=True)))


def correction(
    observed: Observed, renorm: tuple[Array, Array], clips: tuple[Any, Any, Any], *, eps: float, xp: Namespace
) -> tuple[Array, Array]:
    """Return r and d of batch renormalization, x̂·r + d, which are constants for the gradient.

    r = clip(σ/S, rmin, rmax), d = clip((μ−M)/S, −dmax, dmax), with σ = √(σ²+ε) and S no less than √ε.

    Args:
        observed: μ and the biased σ² of the batch, or their means over groups.
        renorm: M and S, as they were before this batch.
        clips: rmin, rmax and dmax: numbers, 0-d arrays, or None for no bound.
        eps: ε.
        xp: The array namespace.

    Source: Ioffe 2017, algorithm 1.
    """
    mean, stddev = renorm
    rmin, rmax, dmax = (c if c is None else xp.zeros_like(mean) + c for c in clips)
    stddev = xp.maximum(stddev, xp.zeros_like(stddev) + math.sqrt(eps))
    r, d = xp.sqrt(observed.var + eps) / stddev, ((observed.mean - mean) + observed.mean_low) / stddev
    r = r if rmin is None else xp.maximum(r, rmin)
    r = r if rmax is None else xp.minimum(r, rmax)
    d = d if dmax is None else xp.minimum(xp.maximum(d, -dmax), dmax)
    return r, d


def forward_scale(statistics: Statistics, gamma: Array | None) -> Array:
    """Return a = γ·r/√(σ²+ε), the scale of y = (x−μ)·a + b."""
    scale = statistics.inv_std if isinstance(statistics.r, float) else statistics.inv_std * statistics.r
    return scale if gamma is None else scale * gamma


def forward_shift(statistics: Statistics, gamma: Array | None, beta: Array | None, xp: Namespace) -> Array:
    """Return b = γ·d + β, the shift of y = (x−μ)·a + b."""
    if isinstance(statistics.d, float):
        return xp.zeros_like(statistics.inv_std) if beta is None else beta
    shift = statistics.d if gamma is None else gamma * statistics.d
    return shift if beta is None else shift + beta


def gamma_gradient(statistics: Statistics, sum_dy: Array, sum_dy_centred: Array) -> Array:
    """Return ∂ℓ/∂γ = Σ dy·(x̂·r + d), from Σ dy and Σ dy·(x−μ)."""
    gradient = sum_dy_centred * forward_scale(statistics, None)
    return gradient if isinstance(statistics.d, float) else gradient + sum_dy * statistics.d


def backward_coefficients(
    statistics: Statistics, gamma: Array | None, sum_dy: Array, sum_dy_centred: Array
) -> Coefficients:
    """Return the coefficients of dx = a·dy + w·((x−μ)·of_centred + constant), w the weight of a sample, 1 without.

    dx = a·dy − w·a·(x−μ)·Σdy(x−μ)/(N·(σ²+ε)) − w·a·Σdy/N, with a the scale of the forward pass. Under statistics that
    are constants 1/N counts as 0: dx = a·dy.

    Source: Ioffe and Szegedy 2015, section 3, the six equations of the chain rule collected; under weights N = Σw.
    """
    scale = forward_scale(statistics, gamma)
    if isinstance(statistics.per_count, float) and statistics.per_count == 0.0:
        return Coefficients(scale)
    per_value = scale * statistics.per_count
    return Coefficients(
        scale, -per_value * statistics.inv_std * statistics.inv_std * sum_dy_centred, -per_value * sum_dy
    )
