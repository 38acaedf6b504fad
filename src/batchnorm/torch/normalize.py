"""The layer as one differentiable function with a hand-derived backward, and the batch split into groups."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm import kernels, statistics
from batchnorm.activations import ACTIVATIONS, activated
from batchnorm.errors import ArgumentError, ShapeError
from batchnorm.layout import Plan, broadcasts
from batchnorm.statistics import Moments, Statistics
from batchnorm.torch.snapshot import snapshot, tracing

kernels.register(xp)


class Inputs(NamedTuple):
    """Every tensor that an output may depend on; those below `residual` carry no gradient.

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

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    weights: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    renorm_mean: Tensor | None = None
    renorm_stddev: Tensor | None = None
    rmin: Tensor | None = None
    rmax: Tensor | None = None
    dmax: Tensor | None = None


@dataclass(frozen=True)
class Recipe:
    """What is no tensor.

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


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of moments, γ, β and the arithmetic on them: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept(parameter: Tensor | None, x: Tensor, plan: Plan) -> Any:
    """Return γ, β or a running statistic in a shape that broadcasts against x, and the working dtype."""
    if parameter is None:
        return None
    return parameter.reshape(plan.feature_shape(x.shape)).to(working_dtype(x.dtype))


def _running_statistics(inputs: Inputs, recipe: Recipe) -> Statistics:
    mean, var = _kept(inputs.mean, inputs.x, recipe.plan), _kept(inputs.var, inputs.x, recipe.plan)
    return statistics.of_running(mean, var, recipe.eps, xp)


def _batch_statistics(inputs: Inputs, recipe: Recipe, moments: Moments, constant: Moments) -> Statistics:
    """Return what to normalise with in training; `constant` are the same moments, without a gradient."""
    x, plan = inputs.x, recipe.plan
    using = statistics.of_batch(moments, recipe.eps, xp)
    if inputs.renorm_mean is not None:
        observed = statistics.observed(constant, "biased", xp, plan.group_axis)
        renorm = _kept(inputs.renorm_mean, x, plan), _kept(inputs.renorm_stddev, x, plan)
        clips = inputs.rmin, inputs.rmax, inputs.dmax
        r, d = statistics.correction(observed, renorm, clips, eps=recipe.eps, xp=xp)
        using = using._replace(r=r, d=d)
    if inputs.weights is not None and inputs.mean is not None:
        running = _running_statistics(inputs, recipe)
        using = statistics.where_heard(using, moments.count, running, least=recipe.least, xp=xp)
    return using


def _affine(inputs: Inputs, recipe: Recipe, using: Statistics) -> Tensor:
    x, plan = inputs.x, recipe.plan
    gamma, beta = _kept(inputs.weight, x, plan), _kept(inputs.bias, x, plan)
    return kernels.select(x, xp).affine(
        x,
        using,
        statistics.forward_scale(using, gamma),
        statistics.forward_shift(using, gamma, beta, xp),
        residual=inputs.residual,
        activation=recipe.activation,
    )


def _differentiate(
    dy: Tensor, inputs: Inputs, recipe: Recipe, using: Statistics, *, y: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Any, Any, Tensor]:
    """Return (dx, dγ, dβ, dz), γ's and β's in the kept shape: reduce, arithmetic on (C,), one elementwise pass."""
    x, plan = inputs.x, recipe.plan
    kernel, gamma, dz = kernels.select(x, xp), _kept(inputs.weight, x, plan), dy
    if recipe.activation is not None:
        dz = kernel.backward_activation(
            dy,
            x,
            using,
            statistics.forward_scale(using, gamma),
            statistics.forward_shift(using, gamma, _kept(inputs.bias, x, plan), xp),
            activation=recipe.activation,
            residual=inputs.residual,
            y=y,
        )
    wants_dx, *learned = wanted
    if recipe.inference and not any(learned):
        sum_dz = sum_dz_centred = dgamma = dbeta = None
    else:
        sum_dz, sum_dz_centred = kernel.backward_reduce(dz, x, plan, using)
        dgamma, dbeta = statistics.gamma_gradient(using, sum_dz, sum_dz_centred), sum_dz
    dx = None
    if wants_dx:
        coefficients = statistics.backward_coefficients(using, gamma, sum_dz, sum_dz_centred)
        dx = kernel.backward_elementwise(dz, x, using, coefficients, inputs.weights)
    if plan.group_axis is not None:  # γ and β are shared by all groups
        dgamma, dbeta = (d if d is None else d.sum(plan.group_axis, keepdim=True) for d in (dgamma, dbeta))
    return dx, dgamma, dbeta, dz


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say the signature once, name by name.

    torch asks for it at every call, which would cost as much as a small batch to work out; and the compiler counts its
    parameters.
    """
    names = ("recipe", *Inputs._fields)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return function


class Normalize(torch.autograd.Function):
    """y = act(γ·(x̂·r + d) + β + residual); in training also returns the moments, which carry no gradient.

    Kept for the backward: the inputs and the moments. For the derivative of an activation also the output, which the
    next layer keeps too, where its sign is enough, and else the residual. Under `create_graph` the moments are taken
    again, differentiably.
    """

    generate_vmap_rule = True

    @staticmethod
    @_signed
    def forward(recipe: Recipe, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return y, and in training the mean, m2, the low part of the mean, and with weights the count."""
        inputs = Inputs(*tensors)
        if recipe.inference:
            return (_affine(inputs, recipe, _running_statistics(inputs, recipe)),)
        moments = kernels.select(inputs.x, xp).moments(inputs.x, recipe.plan, inputs.weights)
        y = _affine(inputs, recipe, _batch_statistics(inputs, recipe, moments, moments))
        counted = () if inputs.weights is None else (moments.count,)
        return y, moments.mean, moments.m2, moments.mean_low, *counted

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward reads."""
        ctx.recipe, *tensors = inputs
        given, activation = Inputs(*tensors), ctx.recipe.activation
        ctx.bias_dtype = None if given.bias is None else given.bias.dtype
        ctx.residual_dtype = None if given.residual is None else given.residual.dtype
        by_output = activation is not None and ACTIVATIONS[activation].by_sign
        if by_output or activation is None:
            given = given._replace(residual=None)
        y, *moments = output
        ctx.mark_non_differentiable(*moments)
        ctx.save_for_backward(*given, y if by_output else None, *moments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, β and the residual."""
        recipe: Recipe = ctx.recipe
        plan, saved = recipe.plan, ctx.saved_tensors
        inputs = Inputs(*saved[: len(Inputs._fields)])
        y, *seen = saved[len(Inputs._fields) :]
        x, weight = inputs.x, inputs.weight
        if recipe.inference:
            using = _running_statistics(inputs, recipe)
        else:
            mean, m2, mean_low, *counted = seen
            constant = moments = Moments(counted[0] if counted else plan.count(x.shape), mean, m2, mean_low)
            if torch.is_grad_enabled():
                moments = kernels.select(x, xp).moments(x, plan, inputs.weights)
            using = _batch_statistics(inputs, recipe, moments, constant)
        dx, dgamma, dbeta, dz = _differentiate(
            grad_outputs[0], inputs, recipe, using, y=y, wanted=ctx.needs_input_grad[1:4]
        )
        shape = plan.parameter_shape(x.shape)
        return (
            None,
            dx,
            None if weight is None or dgamma is None else dgamma.reshape(shape).to(weight.dtype),
            None if ctx.bias_dtype is None or dbeta is None else dbeta.reshape(shape).to(ctx.bias_dtype),
            None if ctx.residual_dtype is None else dz.to(ctx.residual_dtype),
            *[None] * (len(Inputs._fields) - 4),
        )


def by_batch(inputs: Inputs, recipe: Recipe) -> tuple[Tensor, Moments]:
    """Normalise x by its own statistics; return the output, and the moments in the kept shape."""
    y, mean, m2, mean_low, *counted = Normalize.apply(recipe, *inputs)  # pyright: ignore
    count = counted[0] if counted else recipe.plan.count(inputs.x.shape)
    return y, Moments(count, mean, m2, mean_low)


def _differentiated(inputs: Inputs) -> bool:
    """Return whether a backward will follow; tracers and forward-mode derivatives want the operations themselves."""
    forward_mode = forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    if not torch.is_grad_enabled() or forward_mode or tracing():
        return False
    return any(t is not None and t.requires_grad for t in inputs[:4])


def by_running(inputs: Inputs, recipe: Recipe) -> Tensor:
    """Normalise x by the running mean and variance, an affine map: keeps x alone for the backward."""
    mean, var = inputs.mean, inputs.var
    if mean is not None and var is not None and _differentiated(inputs):
        inputs = inputs._replace(mean=snapshot(mean), var=snapshot(var))  # they may move before the backward
        if not torch.compiler.is_compiling():  # a compiler chooses itself what to keep
            (y,) = Normalize.apply(replace(recipe, inference=True), *inputs)  # pyright: ignore
            return y
    return _affine(inputs, recipe, _running_statistics(inputs, recipe))


def by_groups(inputs: Inputs, recipe: Recipe, groups: int) -> tuple[Tensor, Moments]:
    """Normalise each of the groups by its own statistics: sample i of the batch belongs to group i mod `groups`.

    The batch axis becomes (rows, groups), a view. Where rows are wanting in the last one, samples of weight zero stand
    in.
    """
    axis, size = recipe.plan.batch_axis, inputs.x.shape[recipe.plan.batch_axis]
    rows = -(-size // groups)
    missing = rows * groups - size
    weights = inputs.weights
    if missing:
        alike = [size if i == axis else 1 for i in range(inputs.x.ndim)]
        ones = inputs.x.new_ones(alike, dtype=working_dtype(inputs.x.dtype))
        weights = ones if weights is None else weights * ones

    def split(a: Tensor | None) -> Tensor | None:
        if a is None:
            return None
        if a.shape[axis] == 1 and size > 1:
            return a.unsqueeze(axis)
        padding = [0, 0] * (a.ndim - 1 - axis) + [0, missing]
        return (torch.nn.functional.pad(a, padding) if missing else a).unflatten(axis, (rows, groups))

    x, residual, weights = split(inputs.x), split(inputs.residual), split(weights)
    y, moments = by_batch(
        inputs._replace(x=x, residual=residual, weights=weights), replace(recipe, plan=recipe.plan.grouped())
    )
    return y.flatten(axis, axis + 1).narrow(axis, 0, size), moments


def adjusted(inputs: Inputs, recipe: Recipe, adjustment: Callable[[torch.Size], Any]) -> tuple[Tensor, Moments]:
    """Normalise x by its own statistics, and scale and shift x̂ as `adjustment` says, before γ and β do."""
    x, plan, dtype = inputs.x, recipe.plan, working_dtype(inputs.x.dtype)
    plain = inputs._replace(x=x.to(dtype), weight=None, bias=None, residual=None)
    z, moments = by_batch(plain, replace(recipe, activation=None))
    made = adjustment(x.shape)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ArgumentError(f"`adjustment` must return (scale, shift), got {made!r}")
    scale, shift = (torch.as_tensor(a, device=x.device) for a in made)
    for name, value in (("scale", scale), ("shift", shift)):
        if not broadcasts(value.shape, x.shape):
            raise ShapeError(
                f"`adjustment` must return a {name} that broadcasts to the input's shape {tuple(x.shape)}, "
                f"got shape {tuple(value.shape)}"
            )
    z = z * scale + shift
    gamma, beta = _kept(inputs.weight, x, plan), _kept(inputs.bias, x, plan)
    z = z if gamma is None else z * gamma
    z = z if beta is None else z + beta
    z = z if inputs.residual is None else z + inputs.residual.to(dtype)
    return activated(z, recipe.activation, xp).to(x.dtype), moments
