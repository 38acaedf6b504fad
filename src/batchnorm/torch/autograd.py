"""The forward and the backward of core.passes as one function of torch's autograd."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from batchnorm.core import passes
from batchnorm.core.passes import NormInputs, Saved, Wanted
from batchnorm.core.plan import CallPlan, plan_call
from batchnorm.core.policy import ARRAYS, Policy, UseRunning, arrays_of, with_arrays
from batchnorm.core.spec import NormSpec
from batchnorm.kernels import Mode
from batchnorm.layout import Axes
from batchnorm.statistics import Moments
from batchnorm.torch.backends import facts_of, plan_tensors
from batchnorm.torch.tracing import is_plain_tensor, mode, snapshot, will_be_differentiated


class NormalizeCall(NamedTuple):
    """What is no tensor: the plan, and the policy without its arrays."""

    plan: CallPlan
    policy: Policy

    def arranged(self, tensors: tuple[Any, ...]) -> tuple[NormInputs, Policy]:
        """Return the tensors by name."""
        inputs = len(NormInputs._fields)
        return NormInputs(*tensors[:inputs]), with_arrays(self.policy, tensors[inputs:])

    def outputs(self, inputs: NormInputs) -> list[str]:
        """Return the names of what the forward returns behind y: no tensor at all where the statistics are given."""
        if not self.policy.uses_moments:
            return []
        names = ["mean", "m2", "mean_low"] + ["count"] * (inputs.weights is not None)
        whole = passes.whole_forward(self.plan, self.policy)
        if whole is not None:
            has_residual = inputs.residual is not None
            names += ["inv_std"] + ["reserve"] * whole.has_reserve(self.plan.activation, residual=has_residual)
        return names

    def moments(self, values: dict[str, Tensor]) -> Moments | None:
        """Return the moments among the outputs; None where the statistics are given."""
        if not values:
            return None
        count = values.get("count", self.plan.count)
        return Moments(count, values["mean"], values["m2"], values["mean_low"])


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    """Say the signature once, name by name.

    torch asks for it at every call, which would cost as much as a small batch to work out; and the compiler counts its
    parameters.
    """
    names = ("call", *NormInputs._fields, *ARRAYS)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return function


def match_layout(t: Any, like: tuple[tuple[int, ...], torch.dtype] | None) -> Any:
    """Return a tensor with the strides and dtype of x in the forward: hooks may have brought back others."""
    if t is None or like is None or (t.stride() == like[0] and t.dtype is like[1]):
        return t
    return torch.empty_strided(t.shape, like[0], dtype=like[1], device=t.device).copy_(t)


def _in_dtype(t: Any, dtype: torch.dtype) -> Any:
    """Return floating-point numbers in a dtype; others, and None, as they are."""
    return t if t is None or not t.is_floating_point() or t.dtype is dtype else t.to(dtype)


class Normalize(torch.autograd.Function):
    """y = act(γ·(x̂·r + d) + β + residual), and the moments where they are taken, which carry no gradient.

    Kept for the backward: the inputs and the moments. For the derivative of an activation after a residual also one bit
    an element where its sign is enough, and else the residual; the eager kernel keeps the output for any sign, which
    the next layer keeps too. Under `create_graph` the moments are taken again, differentiably.
    """

    generate_vmap_rule = True

    @staticmethod
    @_named
    def forward(call: NormalizeCall, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return y, and the tensors that `NormalizeCall.outputs` names."""
        inputs, policy = call.arranged(tensors)
        y, saved = passes.forward(call.plan, inputs, policy)
        values = {} if saved.moments is None else saved.moments._asdict()
        values |= {"inv_std": saved.inv_std, "reserve": saved.reserve}
        return y, *(values[name] for name in call.outputs(inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward reads."""
        call, *tensors = inputs
        ctx.call, (given, _), (y, *statistics) = call, call.arranged(tuple(tensors)), output
        ctx.mark_non_differentiable(*statistics)
        ctx.names = call.outputs(given)
        ctx.residual_dtype = None if given.residual is None else given.residual.dtype
        signs = y if passes.reads_signs_of_y(call.plan) else None
        if not passes.reads_residual(call.plan, has_reserve="reserve" in ctx.names):
            tensors[NormInputs._fields.index("residual")] = None
        ctx.layout = None if torch.compiler.is_compiling() else (given.x.stride(), given.x.dtype)
        ctx.save_for_backward(*tensors, signs, *statistics)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, β and the residual."""
        call, (dy, *_) = ctx.call, grad_outputs
        arguments = len(NormInputs._fields) + len(ARRAYS)
        saved_tensors = ctx.saved_tensors  # asked for once: checkpointing computes them again
        inputs, policy = call.arranged(saved_tensors[:arguments])
        signs, *statistics = saved_tensors[arguments:]
        inputs = inputs._replace(x=match_layout(inputs.x, ctx.layout))
        if ctx.layout is not None:  # likewise
            numbers = [*statistics, inputs.weights]
            *statistics, weights = (_in_dtype(t, call.plan.dtype) for t in numbers)
            inputs = inputs._replace(weights=weights)
        values = dict(zip(ctx.names, statistics, strict=True))
        saved = Saved(inputs, policy, call.moments(values), values.get("inv_std"), values.get("reserve"), signs)
        _, wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        wanted = Wanted(wants_x, wants_weight, wants_bias, ctx.residual_dtype is not None)
        dx, dgamma, dbeta, dz = backward(call.plan, dy, saved, wanted)
        dz = None if dz is None else dz.to(ctx.residual_dtype)
        return None, dx, dgamma, dbeta, dz, *[None] * (arguments - 4)


def backward(plan: CallPlan, dy: Tensor, saved: Saved, wanted: Wanted) -> passes.Gradients:
    """Return the gradients of a forward, by a kernel that serves under what the backward runs.

    That is not always what the forward ran under: the gradients may be differentiated again, dy may stand for many
    tensors, or a dispatch mode may have begun.
    """
    if torch.is_grad_enabled():
        return passes.backward(plan, dy, saved, wanted, differentiable=True)
    under, kernel = mode(), plan.kernel
    if under is not Mode.COMPILE and not is_plain_tensor(dy):
        kernel = plan.eager
    elif saved.y is None and (under is not plan.facts.mode or plan.one_call is None):  # it may have kept y for itself
        facts = facts_of(saved.inputs, plan.axes, activation=plan.activation, eps=plan.eps)
        kernel = plan_call(saved.inputs.x, facts, xp).kernel
    return passes.backward(plan, dy, saved, wanted, kernel=kernel)


def _apply_plain(*arguments: Any) -> tuple[Tensor, ...]:
    """Apply `Normalize` outside torch.func without binding arguments to names, which takes as long as a small step."""
    return super(torch.autograd.Function, Normalize).apply(*unwrap_dead_wrappers(arguments))  # pyright: ignore


class TorchFrontend:
    """How torch takes part in a training step."""

    xp = xp

    def plan(self, spec: NormSpec, inputs: NormInputs, axes: Axes) -> CallPlan:
        """Return the plan of a call."""
        return plan_tensors(spec, inputs, axes)

    def normalize(self, plan: CallPlan, inputs: NormInputs, policy: Policy) -> tuple[Tensor, Moments | None]:
        """Return the output, and the moments where the policy uses them.

        The running statistics that the backward reads are copies, as they are updated before that.
        """
        if policy.uses_moments and inputs.x.numel() == 0:  # an affine map of nothing, in every mode of differentiation
            zeros = inputs.x.new_zeros(plan.parameter_shape)
            y, _ = self.normalize(plan, inputs, UseRunning(zeros, zeros))
            return y, Moments(0, *(inputs.x.new_zeros(plan.statistics_shape) for _ in range(3)))
        compiling, differentiated = torch.compiler.is_compiling(), will_be_differentiated(*inputs[:4])
        if isinstance(policy, UseRunning) and (compiling or not differentiated):
            # An affine map of framework operations, which a compiler fuses with what is around it.
            used = UseRunning(snapshot(policy.mean), snapshot(policy.var)) if differentiated else policy
            return passes.forward(plan.by_eager() if compiling else plan, inputs, used)[0], None
        mean, var, renorm_mean, renorm_stddev, *clips = arrays_of(policy)
        arrays = [None if a is None else snapshot(a) for a in (mean, var, renorm_mean, renorm_stddev)] + clips
        call = NormalizeCall(plan, with_arrays(policy, (None,) * len(ARRAYS)))
        apply = _apply_plain if plan.facts.mode is Mode.EAGER else Normalize.apply
        y, *statistics = apply(call, *inputs, *arrays)  # pyright: ignore
        return y, call.moments(dict(zip(call.outputs(inputs), statistics, strict=True)))


FRONTEND = TorchFrontend()
