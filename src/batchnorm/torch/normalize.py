"""The layer as one differentiable function with a hand-derived backward."""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm import kernels, statistics
from batchnorm.layout import Plan
from batchnorm.statistics import Moments, Statistics


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of moments, γ, β and the arithmetic on them: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept(parameter: Tensor | None, x: Tensor, plan: Plan) -> Tensor | None:
    """Return γ, β or a running statistic in the kept shape and the working dtype."""
    if parameter is None:
        return None
    return parameter.reshape(plan.kept_shape(x.shape)).to(working_dtype(x.dtype))


def _affine(x: Tensor, using: Statistics, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    shift = torch.zeros_like(using.inv_std) if beta is None else beta
    return kernels.select(x, xp).affine(x, using, statistics.forward_scale(using, gamma), shift)


def _differentiate(
    dy: Tensor, x: Tensor, gamma: Tensor | None, moments: Moments, plan: Plan, eps: float, wants_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return (dx, dγ, dβ), the last two in the kept shape: reduce, arithmetic on (C,), one elementwise pass."""
    kernel = kernels.select(x, xp)
    using = statistics.of_batch(moments, eps, xp)
    sum_dy, sum_dy_centred = kernel.backward_reduce(dy, x, plan, using)
    grad_gamma = statistics.gamma_gradient(using, sum_dy_centred)
    if not wants_dx:
        return None, grad_gamma, sum_dy
    coefficients = statistics.backward_coefficients(
        using, statistics.forward_scale(using, gamma), moments.count, sum_dy, sum_dy_centred
    )
    return kernel.backward_elementwise(dy, x, using, coefficients), grad_gamma, sum_dy


class NormalizeByBatch(torch.autograd.Function):
    """y = γ·(x−μ)/√(σ²+ε) + β with the μ and σ² of x itself; also returns the moments, which carry no gradient.

    Kept for the backward: x, γ and the moments. Under `create_graph` the moments are taken again, differentiably.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y and the three arrays of the moments."""
        moments = kernels.select(x, xp).moments(x, plan)
        using = statistics.of_batch(moments, eps, xp)
        y = _affine(x, using, _kept(weight, x, plan), _kept(bias, x, plan))
        return y, moments.mean, moments.m2, moments.mean_low

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward reads."""
        x, weight, bias, ctx.plan, ctx.eps = inputs
        _, *moments = output
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(*moments)
        ctx.save_for_backward(x, weight, *moments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ and β."""
        x, weight, *saved = ctx.saved_tensors
        plan: Plan = ctx.plan
        again = torch.is_grad_enabled()
        moments = kernels.select(x, xp).moments(x, plan) if again else Moments(plan.count(x.shape), *saved)
        gamma = _kept(weight, x, plan)
        dx, dgamma, dbeta = _differentiate(
            grad_outputs[0], x, gamma, moments, plan, ctx.eps, wants_dx=ctx.needs_input_grad[0]
        )
        shape = plan.parameter_shape(x.shape)
        return (
            dx,
            None if weight is None else dgamma.reshape(shape).to(weight.dtype),
            None if ctx.bias_dtype is None else dbeta.reshape(shape).to(ctx.bias_dtype),
            None,
            None,
        )


def by_batch(x: Tensor, weight: Tensor | None, bias: Tensor | None, plan: Plan, eps: float) -> tuple[Tensor, Moments]:
    """Normalise x by its own statistics; return the output and the moments, in the parameters' shape."""
    y, *moments = NormalizeByBatch.apply(x, weight, bias, plan, eps)  # pyright: ignore
    shape = plan.parameter_shape(x.shape)
    mean, m2, mean_low = (m.reshape(shape) for m in moments)
    return y, Moments(plan.count(x.shape), mean, m2, mean_low)


def by_running(
    x: Tensor,
    running: tuple[Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    plan: Plan,
    eps: float,
) -> Tensor:
    """Normalise x by the running mean and variance: an affine map, differentiated by autograd."""
    mean, var = (_kept(r, x, plan) for r in running)
    return _affine(x, statistics.of_running(mean, var, eps, xp), _kept(weight, x, plan), _kept(bias, x, plan))
