"""The layer as one differentiable function with a hand-derived backward."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchnorm import kernels, statistics
from batchnorm.activations import ACTIVATIONS
from batchnorm.kernels import Backward, Kernel, Wanted
from batchnorm.statistics import Moments, Statistics
from batchnorm.steps import (
    Inputs,
    Recipe,
    affine,
    batch_statistics,
    kept,
    normalises_by_itself,
    running_statistics,
)
from batchnorm.torch import native
from batchnorm.torch.snapshot import snapshot, tracing

kernels.register(xp, cascade=True, faster=native.serve)


class Signs(NamedTuple):
    """Where the sign of z is kept, if anywhere: in the output, or in the bits of the native kernel."""

    y: Any
    bits: Any


def _differentiate(
    kernel: Kernel, dy: Tensor, inputs: Inputs, recipe: Recipe, using: Statistics, *, signs: Signs, wants: Wanted
) -> Backward:
    """Return dz, Σdz, Σdz·(x−μ) and dx: in one call, or reduce, arithmetic on (C,), and one elementwise pass."""
    x, plan = inputs.x, recipe.plan
    gamma, dz = kept(inputs.weight, x, plan, xp), dy
    coefficients = statistics.forward_scale(using, gamma), None
    if recipe.activation is not None:
        beta = kept(inputs.bias, x, plan, xp)
        coefficients = coefficients[0], statistics.forward_shift(using, gamma, beta, xp)
    if kernel.backward is not None:
        return kernel.backward(
            dy, x, using, *coefficients, activation=recipe.activation, residual=inputs.residual,
            bits=signs.bits, weights=inputs.weights, wants=wants,
        )  # fmt: skip
    if recipe.activation is not None:
        dz = kernel.backward_activation(
            dy, x, using, *coefficients, activation=recipe.activation, residual=inputs.residual, y=signs.y
        )  # fmt: skip
    sums = kernel.backward_reduce(dz, x, plan, using) if wants.sums else (None, None)
    dx = None
    if wants.dx:
        through = statistics.backward_coefficients(using, gamma, *sums)
        dx = kernel.backward_elementwise(dz, x, using, through, inputs.weights)
    return Backward(dz, *sums, dx)


def _signs_again(inputs: Inputs, recipe: Recipe, using: Statistics, bits: Tensor | None) -> Tensor:
    """Return numbers of the sign of z from what the native kernel has kept: from act'(z), as it finds that."""
    kernel = native.DIRECT  # which alone keeps bits
    if bits is None:
        kernel = kernels.select(inputs.x, recipe.plan, xp, weights=inputs.weights)
    found: Any = _differentiate(
        kernel, torch.ones_like(inputs.x), inputs, recipe, using, signs=Signs(None, bits),
        wants=Wanted(dx=False, dz=True, sums=False),
    )  # fmt: skip
    return found.dz - 0.5  # 1 where z > 0; 0, or a small slope, elsewhere


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say the signature once, name by name.

    torch asks for it at every call, which would cost as much as a small batch to work out; and the compiler counts its
    parameters.
    """
    names = ("recipe", *Inputs._fields)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return function


def lies(x: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Return how x lies in memory: its strides and dtype."""
    return x.stride(), x.dtype


def as_before(t: Any, before: tuple[tuple[int, ...], torch.dtype] | None) -> Any:
    """Return a tensor that lies in memory as x did in the forward: hooks may have brought it back otherwise."""
    if t is None or before is None or (t.stride() == before[0] and t.dtype is before[1]):
        return t
    return torch.empty_strided(t.shape, before[0], dtype=before[1], device=t.device).copy_(t)


class Normalize(torch.autograd.Function):
    """y = act(γ·(x̂·r + d) + β + residual); in training also returns the moments, which carry no gradient.

    Kept for the backward: the inputs and the moments. For the derivative of an activation after a residual also one bit
    an element where its sign is enough, and else the residual; the eager kernel keeps the output for any sign, which
    the next layer keeps too. Under `create_graph` the moments are taken again, differentiably.
    """

    generate_vmap_rule = True

    @staticmethod
    @_signed
    def forward(recipe: Recipe, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return y, and in training the mean, m2, the low part of the mean, and with weights the count.

        Where one call has done it all, 1/√(σ²+ε) follows, and the signs of z that it has kept.
        """
        inputs, plan = Inputs(*tensors), recipe.plan
        if recipe.inference:
            return (affine(inputs, recipe, running_statistics(inputs, recipe, xp), xp),)
        kernel = kernels.select(inputs.x, plan, xp, residual=inputs.residual, weights=inputs.weights)
        more: tuple[Tensor, ...] = ()
        if kernel.forward is None or not normalises_by_itself(inputs):
            moments = kernel.moments(inputs.x, plan, inputs.weights)
            using = batch_statistics(inputs, recipe, moments, moments, xp)
            y = affine(inputs, recipe, using, xp, kernel=kernel)
        else:
            gamma, beta = (kept(p, inputs.x, plan, xp) for p in (inputs.weight, inputs.bias))
            y, moments, *found = kernel.forward(
                inputs.x, plan, gamma, beta, eps=recipe.eps, activation=recipe.activation,
                residual=inputs.residual, weights=inputs.weights,
            )  # fmt: skip
            more = tuple(t for t in found if t is not None)
        counted = () if inputs.weights is None else (moments.count,)
        return y, moments.mean, moments.m2, moments.mean_low, *counted, *more

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward reads."""
        ctx.recipe, *tensors = inputs
        given, activation = Inputs(*tensors), ctx.recipe.activation
        ctx.bias_dtype = None if given.bias is None else given.bias.dtype
        ctx.residual_dtype = None if given.residual is None else given.residual.dtype
        y, *moments = output
        ctx.mark_non_differentiable(*moments)
        by_sign = activation is not None and ACTIVATIONS[activation].by_sign
        # The native kernel finds z again from x; with a residual it has kept the signs.
        kernel = kernels.select(given.x, ctx.recipe.plan, xp, residual=given.residual, weights=given.weights)
        kept_bits = len(moments) > 4 + (given.weights is not None)
        ctx.signs = Signs(by_sign and kernel.backward is None, kept_bits)
        if activation is None or ctx.signs.y or kept_bits:
            given = given._replace(residual=None)
        ctx.lies = None if torch.compiler.is_compiling() else lies(given.x)
        ctx.save_for_backward(*given, y if ctx.signs.y else None, *moments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, β and the residual."""
        recipe: Recipe = ctx.recipe
        plan, saved = recipe.plan, ctx.saved_tensors
        inputs = Inputs(*saved[: len(Inputs._fields)])
        inputs = inputs._replace(x=as_before(inputs.x, ctx.lies))
        y, *seen = saved[len(Inputs._fields) :]
        x, weight = inputs.x, inputs.weight
        again = torch.is_grad_enabled()  # the gradients will be differentiated: by the framework's own operations
        kernel, many = kernels.plain(xp), not torch.compiler.is_compiling() and not native.ordinary(grad_outputs[0])
        if not again and not many and y is None:  # what the eager kernel has begun it ends: it has kept y for the sign
            kernel = kernels.select(x, plan, xp, residual=inputs.residual, weights=inputs.weights)
        using, signs = _seen(inputs, recipe, seen, again=again), Signs(y, seen[-1] if ctx.signs.bits else None)
        by_sign = recipe.activation is not None and ACTIVATIONS[recipe.activation].by_sign
        if kernel.backward is None and signs.y is None and by_sign:
            with torch.no_grad():
                signs = Signs(_signs_again(inputs, recipe, _seen(inputs, recipe, seen, again=False), signs.bits), None)
        wants_dx, *learned = ctx.needs_input_grad[1:4]
        wants = Wanted(wants_dx, ctx.residual_dtype is not None, any(learned) or (wants_dx and not recipe.inference))
        found = _differentiate(kernel, grad_outputs[0], inputs, recipe, using, signs=signs, wants=wants)
        dgamma = dbeta = None
        if found.sum_dz is not None:
            dgamma, dbeta = statistics.gamma_gradient(using, found.sum_dz, found.sum_dz_centred), found.sum_dz
            if plan.group_axis is not None:  # γ and β are shared by all groups
                dgamma, dbeta = (d.sum(plan.group_axis, keepdim=True) for d in (dgamma, dbeta))
        shape = plan.parameter_shape(x.shape)
        return (
            None,
            found.dx,
            None if weight is None or dgamma is None else dgamma.reshape(shape).to(weight.dtype),
            None if ctx.bias_dtype is None or dbeta is None else dbeta.reshape(shape).to(ctx.bias_dtype),
            None if ctx.residual_dtype is None or found.dz is None else found.dz.to(ctx.residual_dtype),
            *[None] * (len(Inputs._fields) - 4),
        )


def _seen(inputs: Inputs, recipe: Recipe, seen: Sequence[Tensor], *, again: bool) -> Statistics:
    """Return what the forward has normalised with; `again`: as a function of x that can be differentiated."""
    x, plan, weighted = inputs.x, recipe.plan, inputs.weights is not None
    if recipe.inference:
        return running_statistics(inputs, recipe, xp)
    mean, m2, mean_low, *more = seen
    constant = moments = Moments(more[0] if weighted else plan.count(x.shape), mean, m2, mean_low)
    if again:
        moments = kernels.plain(xp).moments(x, plan, inputs.weights)
    elif len(more) > weighted:
        return Statistics(mean, mean_low, more[weighted], 1.0 / statistics.divisor(constant.count, xp))
    return batch_statistics(inputs, recipe, moments, constant, xp)


def by_batch(inputs: Inputs, recipe: Recipe) -> tuple[Tensor, Moments]:
    """Normalise x by its own statistics; return the output, and the moments in the kept shape."""
    y, mean, m2, mean_low, *more = Normalize.apply(recipe, *inputs)  # pyright: ignore
    count = recipe.plan.count(inputs.x.shape) if inputs.weights is None else more[0]
    return y, Moments(count, mean, m2, mean_low)


def differentiated(inputs: Inputs) -> bool:
    """Return whether a backward will follow; tracers and forward-mode derivatives want the operations themselves."""
    forward_mode = forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    if not torch.is_grad_enabled() or forward_mode or tracing():
        return False
    return any(t is not None and t.requires_grad for t in inputs[:4])


def by_running(inputs: Inputs, recipe: Recipe) -> Tensor:
    """Normalise x by the running mean and variance, an affine map: keeps x alone for the backward."""
    mean, var = inputs.mean, inputs.var
    if mean is not None and var is not None and differentiated(inputs):
        inputs = inputs._replace(mean=snapshot(mean), var=snapshot(var))  # they may move before the backward
        if not torch.compiler.is_compiling():  # a compiler chooses itself what to keep
            (y,) = Normalize.apply(replace(recipe, inference=True), *inputs)  # pyright: ignore
            return y
    # A compiler fuses an affine map with what is around it.
    kernel = kernels.plain(xp) if torch.compiler.is_compiling() else None
    return affine(inputs, recipe, running_statistics(inputs, recipe, xp), xp, kernel=kernel)
