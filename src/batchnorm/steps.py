"""Moments, statistics, affine: the three steps put together once, for every front-end.

Written on an array namespace `xp` like the steps themselves. What differs between frameworks is how a batch normalised
by its own moments is differentiated, so that is handed in: `(inputs, recipe) -> (y, moments)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from batchnorm import kernels, statistics
from batchnorm.activations import activated
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.layout import Plan, broadcasts
from batchnorm.statistics import Array, Moments, Namespace, Statistics, is_number, sizes


class Inputs(NamedTuple):
    """Every array that an output may depend on; those below `residual` carry no gradient.

    Attributes:
        x: Input.
        weight: γ, in the parameters' shape like all that follow but `residual` and `weights`.
        bias: β.
        residual: Added before the activation, in the shape of x.
        weights: Of samples, in the rank of x with 1 on the axes of features, in the working precision.
        mean: Running mean: for inference, and for groups with nothing to say.
        var: Running variance, likewise.
        renorm_mean: M of renormalization.
        renorm_stddev: S.
        rmin: 0-d; None for no bound.
        rmax: Likewise.
        dmax: Likewise.
    """

    x: Array
    weight: Array | None = None
    bias: Array | None = None
    residual: Array | None = None
    weights: Array | None = None
    mean: Array | None = None
    var: Array | None = None
    renorm_mean: Array | None = None
    renorm_stddev: Array | None = None
    rmin: Array | None = None
    rmax: Array | None = None
    dmax: Array | None = None


@dataclass(frozen=True)
class Recipe:
    """What is no array.

    Attributes:
        plan: The axes.
        eps: ε.
        activation: Its name, or None.
        least: The largest count that running statistics stand in for, where there are any.
        inference: Whether to normalise by the running statistics.
    """

    plan: Plan
    eps: float
    activation: str | None = None
    least: int = 0
    inference: bool = False


ByBatch = Callable[[Inputs, Recipe], tuple[Array, Moments]]


def working_dtype(dtype: Any, xp: Namespace) -> Any:
    """Return the dtype of moments, γ, β and the arithmetic on them: float32 at least."""
    return xp.float64 if xp.finfo(dtype).bits > 32 else xp.float32


def kept(parameter: Array | None, x: Array, plan: Plan, xp: Namespace) -> Any:
    """Return γ, β or a running statistic in a shape that broadcasts against x, and the working dtype."""
    if parameter is None:
        return None
    precise = working_dtype(x.dtype, xp)
    return xp.astype(xp.reshape(parameter, plan.feature_shape(x.shape)), precise, copy=False)


def running_statistics(inputs: Inputs, recipe: Recipe, xp: Namespace) -> Statistics:
    """Return what to normalise with in inference."""
    mean, var = (kept(s, inputs.x, recipe.plan, xp) for s in (inputs.mean, inputs.var))
    return statistics.of_running(mean, var, recipe.eps, xp)


def normalises_by_itself(inputs: Inputs) -> bool:
    """Return whether the batch is normalised by its own moments and nothing else."""
    return inputs.renorm_mean is None and (inputs.weights is None or inputs.mean is None)


def batch_statistics(inputs: Inputs, recipe: Recipe, moments: Moments, constant: Moments, xp: Namespace) -> Statistics:
    """Return what to normalise with in training; `constant` are the same moments, without a gradient."""
    x, plan = inputs.x, recipe.plan
    using = statistics.of_batch(moments, recipe.eps, xp)
    if inputs.renorm_mean is not None:
        observed = statistics.observed(constant, "biased", xp, plan.group_axis)
        renorm = kept(inputs.renorm_mean, x, plan, xp), kept(inputs.renorm_stddev, x, plan, xp)
        clips = inputs.rmin, inputs.rmax, inputs.dmax
        r, d = statistics.correction(observed, renorm, clips, eps=recipe.eps, xp=xp)
        using = using._replace(r=r, d=d)
    if inputs.weights is not None and inputs.mean is not None:
        running = running_statistics(inputs, recipe, xp)
        using = statistics.where_heard(using, moments.count, running, least=recipe.least, xp=xp)
    return using


def affine(
    inputs: Inputs, recipe: Recipe, using: Statistics, xp: Namespace, *, kernel: kernels.Kernel | None = None
) -> Array:
    """Return the output, in one pass; by the fastest kernel if none is named."""
    x, plan = inputs.x, recipe.plan
    kernel = kernel or kernels.select(x, plan, xp, residual=inputs.residual, weights=inputs.weights)
    gamma, beta = kept(inputs.weight, x, plan, xp), kept(inputs.bias, x, plan, xp)
    return kernel.affine(
        x,
        using,
        statistics.forward_scale(using, gamma),
        statistics.forward_shift(using, gamma, beta, xp),
        residual=inputs.residual,
        activation=recipe.activation,
    )


def silence(x: Array, weights: Array, xp: Namespace) -> Array:
    """Return x with 0 for inf and NaN where the weight is zero: padding must not reach a gradient."""
    return xp.where((weights > 0) | xp.isfinite(x), x, xp.zeros_like(x))


def by_groups(inputs: Inputs, recipe: Recipe, groups: Any, by_batch: ByBatch, xp: Namespace) -> tuple[Array, Moments]:
    """Normalise each of the groups by its own statistics: sample i of the batch belongs to group i mod `groups`.

    The batch axis becomes (rows, groups), a view. Where rows are wanting in the last one, samples of weight zero stand
    in. The moments are those of the grouped plan.
    """
    axis, size = recipe.plan.batch_axis, sizes(inputs.x, xp)[recipe.plan.batch_axis]
    rows = -(-size // groups)
    missing = rows * groups - size
    ragged = not is_number(missing) or missing != 0  # a size that only the run will tell may leave a remainder
    place: Any = getattr(inputs.x, "device", None)
    weights = inputs.weights

    def split(a: Array | None) -> Array | None:
        if a is None:
            return None
        own = sizes(a, xp)
        if is_number(own[axis]) and own[axis] == 1:
            return xp.expand_dims(a, axis=axis)
        if ragged and a is not real:
            more = (*own[:axis], missing, *own[axis + 1 :])
            a = xp.concat([a, xp.zeros(more, dtype=a.dtype, device=place)], axis=axis)
        return xp.reshape(a, (*own[:axis], rows, groups, *own[axis + 1 :]))

    real = None
    if ragged and (weights is None or weights.shape[axis] == 1):
        real = xp.astype(xp.arange(rows * groups, device=place) < size, working_dtype(inputs.x.dtype, xp))
        real = xp.reshape(real, tuple(-1 if i == axis else 1 for i in range(len(inputs.x.shape))))
        weights = real = real if weights is None else weights * real
    grouped = inputs._replace(x=split(inputs.x), residual=split(inputs.residual), weights=split(weights))
    y, moments = by_batch(grouped, replace(recipe, plan=recipe.plan.grouped()))
    own = sizes(inputs.x, xp)
    y = xp.reshape(y, (*own[:axis], rows * groups, *own[axis + 1 :]))
    return (y[(slice(None),) * axis + (slice(0, size),)] if ragged else y), moments


def adjusted(
    inputs: Inputs, recipe: Recipe, adjustment: Callable[[Any], Any], by_batch: ByBatch, xp: Namespace
) -> tuple[Array, Moments]:
    """Normalise x by its own statistics, and scale and shift x̂ as `adjustment` says, before γ and β do."""
    x, plan, precise = inputs.x, recipe.plan, working_dtype(inputs.x.dtype, xp)
    plain = inputs._replace(x=xp.astype(x, precise, copy=False), weight=None, bias=None, residual=None)
    z, moments = by_batch(plain, replace(recipe, activation=None))
    made = adjustment(sizes(x, xp))
    if not isinstance(made, tuple) or len(made) != 2:
        raise ArgumentError(f"`adjustment` must return (scale, shift), got {made!r}")
    convert = xp.as_tensor if hasattr(xp, "as_tensor") else xp.asarray  # torch's own lets a gradient through
    scale, shift = (convert(a, dtype=precise, device=getattr(x, "device", None)) for a in made)
    for name, value in (("scale", scale), ("shift", shift)):
        if not broadcasts(value.shape, x.shape):
            raise ShapeError(
                f"`adjustment` must return a {name} that broadcasts to the input's shape {tuple(x.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
    z = z * scale + shift
    gamma, beta = kept(inputs.weight, x, plan, xp), kept(inputs.bias, x, plan, xp)
    z = z if gamma is None else z * gamma
    z = z if beta is None else z + beta
    z = z if inputs.residual is None else z + xp.astype(inputs.residual, precise, copy=False)
    return xp.astype(activated(z, recipe.activation, xp), x.dtype, copy=False), moments
