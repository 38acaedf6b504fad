"""The layer as one differentiable function with a hand-derived backward."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm import kernels, statistics
from batchnorm.activations import ACTIVATIONS
from batchnorm.statistics import Moments, Statistics
from batchnorm.steps import Inputs, Recipe, affine, batch_statistics, kept, running_statistics
from batchnorm.torch.snapshot import snapshot, tracing

kernels.register(xp, cascade=True)


def _differentiate(
    dy: Tensor, inputs: Inputs, recipe: Recipe, using: Statistics, *, y: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Any, Any, Tensor]:
    """Return (dx, dγ, dβ, dz), γ's and β's in the kept shape: reduce, arithmetic on (C,), one elementwise pass."""
    x, plan = inputs.x, recipe.plan
    kernel, gamma, dz = kernels.select(x, xp), kept(inputs.weight, x, plan, xp), dy
    if recipe.activation is not None:
        dz = kernel.backward_activation(
            dy,
            x,
            using,
            statistics.forward_scale(using, gamma),
            statistics.forward_shift(using, gamma, kept(inputs.bias, x, plan, xp), xp),
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
            return (affine(inputs, recipe, running_statistics(inputs, recipe, xp), xp),)
        moments = kernels.select(inputs.x, xp).moments(inputs.x, recipe.plan, inputs.weights)
        y = affine(inputs, recipe, batch_statistics(inputs, recipe, moments, moments, xp), xp)
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
            using = running_statistics(inputs, recipe, xp)
        else:
            mean, m2, mean_low, *counted = seen
            constant = moments = Moments(counted[0] if counted else plan.count(x.shape), mean, m2, mean_low)
            if torch.is_grad_enabled():
                moments = kernels.select(x, xp).moments(x, plan, inputs.weights)
            using = batch_statistics(inputs, recipe, moments, constant, xp)
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
    return affine(inputs, recipe, running_statistics(inputs, recipe, xp), xp)
