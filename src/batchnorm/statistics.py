"""The middle step: from what a batch says to how to normalise with it, and what to remember.

Everything here is arithmetic on per-feature arrays, written with operators and an array namespace `xp` (NumPy, torch
through array-api-compat, jax.numpy, keras.ops), so that no framework can drift from another. Nothing is done in place.

Every option of the layer is a choice of `Statistics`: those of the batch, or the running ones. What the two passes over
the data then need is the same few coefficients.

Sources: Ioffe and Szegedy 2015, algorithms 1 and 2; Chan, Golub and LeVeque 1979 for `merge`.
"""

from typing import Any, NamedTuple

from batchnorm.conventions import Estimator

Array = Any
Namespace = Any


class Moments(NamedTuple):
    """What a batch says about each feature.

    The mean is the unevaluated sum `mean + mean_low`: at a mean of 10⁶ standard deviations one float32 cannot hold it
    well enough to subtract it, two can.

    Attributes:
        count: N, the number of values per feature (a number, or an array where it differs).
        mean: μ rounded to the working precision.
        m2: Σ(x−μ)², never Σx² − Nμ².
        mean_low: μ − `mean`, what the rounding left over.
    """

    count: Array
    mean: Array
    m2: Array
    mean_low: Array = 0.0


class Statistics(NamedTuple):
    """What to normalise with: x̂ = ((x − mean) − mean_low)·inv_std.

    Attributes:
        mean: High part of the mean.
        mean_low: Low part of the mean; zero where one number holds it.
        inv_std: 1/√(σ²+ε).
    """

    mean: Array
    mean_low: Array
    inv_std: Array


class Coefficients(NamedTuple):
    """The elementwise pass of the backward: dx = dy·of_dy + (x−μ)·of_centred + constant."""

    of_dy: Array
    of_centred: Array
    constant: Array


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two batches taken together, whatever their sizes.

    n = n_a + n_b,  δ = μ_b − μ_a,  μ = μ_a + δ·n_b/n,  m2 = m2_a + m2_b + δ²·n_a·n_b/n.

    Exact up to rounding: any split of the data gives the same answer. A batch with a count of zero changes nothing; of
    two empty ones the total must not be taken.

    Source: Chan, Golub and LeVeque 1979, eq. 2.1.

    >>> merge(Moments(2, 1.0, 2.0), Moments(1, 4.0, 0.0))[:3]  # 0, 2 and 4
    (3, 2.0, 8.0)
    """
    count = a.count + b.count
    share = b.count / count
    delta, delta_low = b.mean - a.mean, b.mean_low - a.mean_low
    step = delta * share
    mean = a.mean + step
    low = (a.mean_low + delta_low * share) + (step - (mean - a.mean))  # what rounding the mean left over
    delta = delta + delta_low
    return Moments(count, mean, a.m2 + b.m2 + delta * delta * (a.count * share), low)


def variance(moments: Moments) -> Array:
    """Return σ² = m2/N, the biased variance: what the output is normalised with."""
    return moments.m2 / moments.count


def observed_variance(moments: Moments, estimator: Estimator) -> Array:
    """Return the variance that the running statistics take in: σ²·N/(N−1) if unbiased and N > 1, else σ².

    Differs:
        torch remembers the unbiased one; Keras 3 and Flax the biased one.

    >>> observed_variance(Moments(4, 0.0, 12.0), "unbiased"), observed_variance(Moments(4, 0.0, 12.0), "biased")
    (4.0, 3.0)
    >>> observed_variance(Moments(1, 0.0, 0.0), "unbiased")
    0.0
    """
    bessel = 1 if estimator == "unbiased" and moments.count > 1 else 0
    return moments.m2 / (moments.count - bessel)


def updated(running: Array, observed: Array, momentum: Array) -> Array:
    """Return s + α·(observed − s), where α = `momentum` is the weight of the NEW observation.

    Differs:
        Keras and Flax write s·momentum + observed·(1−momentum): their momentum is 1−α.

    >>> updated(1.0, 3.0, 0.25)
    1.5
    """
    return running + momentum * (observed - running)


def of_batch(moments: Moments, eps: float, xp: Namespace) -> Statistics:
    """Return the statistics of the batch itself: training."""
    return Statistics(moments.mean, moments.mean_low, 1.0 / xp.sqrt(variance(moments) + eps))


def of_running(running_mean: Array, running_var: Array, eps: float, xp: Namespace) -> Statistics:
    """Return the remembered statistics: inference, where the layer is an affine map."""
    return Statistics(running_mean, 0.0, 1.0 / xp.sqrt(running_var + eps))


def forward_scale(statistics: Statistics, gamma: Array | None) -> Array:
    """Return a = γ/√(σ²+ε), the scale of y = (x−μ)·a + β."""
    return statistics.inv_std if gamma is None else statistics.inv_std * gamma


def gamma_gradient(statistics: Statistics, sum_dy_centred: Array) -> Array:
    """Return ∂ℓ/∂γ = Σ dy·x̂, from Σ dy·(x−μ)."""
    return sum_dy_centred * statistics.inv_std


def backward_coefficients(
    statistics: Statistics, scale: Array, count: Array, sum_dy: Array, sum_dy_centred: Array
) -> Coefficients:
    """Return the coefficients of dx where μ and σ² are those of the batch, so that gradients flow through them.

    dx = a·dy − a·(x−μ)·Σdy(x−μ)/(N·(σ²+ε)) − a·Σdy/N, with a = `scale`. Under running statistics the last two terms
    vanish: dx = a·dy.

    Source: Ioffe and Szegedy 2015, section 3, the six equations of the chain rule collected.
    """
    per_value = scale / count
    return Coefficients(
        scale, -per_value * statistics.inv_std * statistics.inv_std * sum_dy_centred, -per_value * sum_dy
    )
