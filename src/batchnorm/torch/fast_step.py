"""The forward, the backward and the update of a plain step, in one call of the native library each.

Small batches notice every operation. These are functions of tensors and of a call that has been checked, and compute
what `Normalize` and `core.step.update` compute. Other calls, and invalid ones, go to the general path, which raises.
"""

import math
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchnorm.core.passes import NormInputs, Saved, Wanted
from batchnorm.core.plan import CallPlan
from batchnorm.core.policy import Batch, UseRunning
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import BatchMoments
from batchnorm.kernels import Mode
from batchnorm.kernels.native import abi
from batchnorm.kernels.native.memory import layout_of
from batchnorm.layout import axes_of, normalise_axis
from batchnorm.statistics import Moments
from batchnorm.torch.autograd import backward, match_layout
from batchnorm.torch.backends import NAMES, NATIVE, plan_tensors
from batchnorm.torch.check import has_memory
from batchnorm.torch.tracing import is_plain_on_cpu, mode

_LIBRARY: Any = abi.load()
_copy_call, _copy_update = abi.Call.from_buffer_copy, abi.UpdateCall.from_buffer_copy
_address, _elements, _is_contiguous, _EAGER = Tensor.data_ptr, Tensor.numel, Tensor.is_contiguous, Mode.EAGER


class FastPlan(NamedTuple):
    """A `CallPlan` that one call serves, with what such a call reads of it.

    Attributes:
        plan: The plan.
        template: A call with all but its addresses.
        row_bytes: The size of one number for each feature.
        numbers: How many numbers a step writes: five rows.
        bits: How many masks hold the signs of z after a residual; 0 where the activation does not go by the sign.
        dtype: The working dtype.
        activates: Whether there is an activation.
        needs_preactivation: Whether the derivative of the activation reads z itself.
        layout: Strides and dtype of x.
    """

    plan: CallPlan
    template: abi.Call
    row_bytes: int
    numbers: int
    bits: int
    dtype: torch.dtype
    activates: bool
    needs_preactivation: bool
    layout: tuple[tuple[int, ...], torch.dtype]


class ReadyCall(NamedTuple):
    """A call that has been checked. One that is the same need not be checked again.

    Attributes:
        spec: The options of the layer.
        shape: Of x.
        strides: Of x.
        dtype: Of x.
        held: γ, β, the running mean and variance, and the count of batches.
        tensors: Those of the five that are not None.
        addresses: Data pointers of the tensors; assigning to `.data` changes them, but not the object.
        elements: How many numbers each of the tensors has, likewise.
        trains: Whether one call serves a training step.
        fast: The plan.
        note: Which kernel serves, and why no faster one does; None where it is the fastest.
        update_call: An update of the running statistics but for the moments; None without running statistics.
        updated: The tensors that an update changes.
        infers: Whether there are running statistics to infer by.
        inference: The call of inference without gradients but for its arrays; None where parameters of 16 bits must be
            widened for it each time.
    """

    spec: NormSpec
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    held: tuple[Tensor | None, ...]
    tensors: tuple[Tensor, ...]
    addresses: tuple[int, ...]
    elements: tuple[int, ...]
    trains: bool
    fast: FastPlan
    note: str | None
    update_call: abi.UpdateCall | None
    updated: tuple[Tensor, ...]
    infers: bool
    inference: abi.Call | None


def serves(x: Tensor, residual: Tensor | None) -> bool:
    """Return whether these are plain tensors on a CPU, alike in memory, that no tracer, transform or mode observes."""
    return (
        mode() is _EAGER
        and is_plain_on_cpu(x)
        and (residual is None or (is_plain_on_cpu(residual) and _alike(residual, x)))
    )


def _alike(residual: Tensor, x: Tensor) -> bool:
    return residual.dtype is x.dtype and residual.shape == x.shape and residual.stride() == x.stride()


def is_same(last: ReadyCall, spec: NormSpec, x: Tensor, held: tuple[Tensor | None, ...]) -> bool:
    """Return whether a call is the same as one that has been checked."""
    return (
        last.spec is spec
        and all(map(is_, held, last.held))
        and x.dtype is last.dtype
        and x.shape == last.shape
        and x.stride() == last.strides
        and tuple(map(_address, last.tensors)) == last.addresses
        and tuple(map(_elements, last.tensors)) == last.elements
        and all(map(_is_contiguous, last.tensors))
    )


def check(spec: NormSpec, x: Tensor, held: tuple[Tensor | None, ...]) -> ReadyCall | None:
    """Return a `ReadyCall` if the native library can run this call, else None.

    Args:
        spec: The options of the layer.
        x: Input, for which `serves` holds.
        held: γ, β, the running mean and variance, and the count of batches.
    """
    axes, rank = normalise_axis(spec.axis), x.ndim
    if x.dtype not in NAMES or rank <= len(axes) or not has_memory(x) or not all(-rank <= a < rank for a in axes):
        return None
    fast = _fast_plan(plan_tensors(spec, NormInputs(x), axes_of(rank, spec.axis)), x.dtype)
    weight, bias, mean, var, batches = held
    if (
        fast is None
        or (mean is None) != (var is None)
        or not (_is_readable(weight, fast, parameter=True) and _is_readable(bias, fast, parameter=True))
        or not (_is_readable(mean, fast) and _is_readable(var, fast))
    ):
        return None
    trains = _trains(spec) and fast.plan.count > 1 and _is_count(batches)
    tensors, updated, inference = tuple(t for t in held if t is not None), (), None
    if mean is not None and var is not None:
        updated = (mean, var) if batches is None else (mean, var, batches)
        if all(p is None or p.dtype is fast.dtype for p in (weight, bias)):
            inference = _inference(fast, mean, var, weight, bias)
    return ReadyCall(
        spec, x.shape, x.stride(), x.dtype, held, tensors, tuple(map(_address, tensors)),
        tuple(map(_elements, tensors)), trains, fast, fast.plan.note,
        _update_call(spec, fast, *updated) if trains and updated else None, updated, bool(updated), inference,
    )  # fmt: skip


def _update_call(
    spec: NormSpec, fast: FastPlan, mean: Tensor, var: Tensor, batches: Tensor | None = None
) -> abi.UpdateCall:
    """Return an update of the running statistics with all but the moments."""
    return abi.UpdateCall(
        fast.numbers // 5, abi.DTYPES[NAMES[fast.dtype]], running_mean=mean.data_ptr(), running_var=var.data_ptr(),
        batches=0 if batches is None else batches.data_ptr(), count=fast.plan.count, momentum=spec.momentum,
        unbiased=spec.estimator == "unbiased", skip=spec.nonfinite == "skip",
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _fast_plan(plan: CallPlan, dtype: torch.dtype) -> FastPlan | None:
    if plan.template is None:
        return None
    facts, activation, features = plan.facts, plan.activation, math.prod(plan.parameter_shape)
    layout: Any = layout_of(facts)
    by_sign = NATIVE.has_reserve(activation, residual=True)
    return FastPlan(
        plan, plan.template, features * plan.dtype.itemsize, 5 * features,
        layout.bits_size(facts.dtype) if by_sign else 0, plan.dtype, activation is not None,
        activation is not None and not by_sign, (facts.strides, dtype),
    )  # fmt: skip


def _trains(spec: NormSpec) -> bool:
    """Return whether the options of a layer are none that need more than one call."""
    return not (
        spec.sync
        or spec.momentum is None
        or spec.renorm is not None
        or spec.virtual_batch_size is not None
        or spec.adjustment is not None
        or spec.nonfinite == "raise"
    )


def _is_readable(t: Any, fast: FastPlan, *, parameter: bool = False) -> bool:
    """Return whether this is None, or numbers of features that the library can read; a parameter may have 16 bits."""
    return t is None or (
        (type(t) is torch.nn.Parameter or type(t) is Tensor)
        and t.is_cpu
        and (t.dtype is fast.dtype or (parameter and t.dtype in NAMES and t.dtype.itemsize < 4))
        and t.shape == fast.plan.parameter_shape
        and t.is_contiguous()
        and has_memory(t)
    )


def _is_count(batches: Any) -> bool:
    """Return whether this is None, or a count of batches that the library can move on."""
    return batches is None or (batches.dtype is torch.long and batches.is_cpu and batches.ndim == 0)


def _inference(fast: FastPlan, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> abi.Call:
    """Return a call of inference with all but the addresses of its arrays."""
    call = _copy_call(fast.template)
    call.mean, call.m2 = mean.data_ptr(), var.data_ptr()
    call.scale = 0 if weight is None else weight.data_ptr()
    call.shift = 0 if bias is None else bias.data_ptr()
    return call


def _precise(parameter: Tensor | None, fast: FastPlan) -> Tensor | None:
    if parameter is None or parameter.dtype is fast.dtype:
        return parameter
    return parameter.to(fast.dtype)


def _gradient_memory(parameter: Tensor, fast: FastPlan) -> Tensor:
    """Return memory for a gradient in the working dtype."""
    if parameter.dtype is fast.dtype:
        return torch.empty_like(parameter)
    return parameter.new_empty(fast.plan.parameter_shape, dtype=fast.dtype)


class FastNormalize(torch.autograd.Function):
    """`Normalize` on plain tensors: (x, γ, β, residual, fast, numbers, fixed) -> y.

    `numbers` has a row each of: mean, its low part, m2, 1/√(σ²+ε), and that times γ. In training they are written here;
    where the statistics are `fixed` the first and the third are given, the running mean and variance, and the second is
    unused.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, fast: FastPlan,
        numbers: Tensor, fixed: bool,
    ) -> Tensor:  # fmt: skip
        """Return y."""
        y, row, row_bytes, bits = torch.empty_like(x), numbers.data_ptr(), fast.row_bytes, None
        call = _copy_call(fast.template)
        call.x, call.y = x.data_ptr(), y.data_ptr()
        if residual is not None:
            call.residual = residual.data_ptr()
            if fast.bits:
                bits = x.new_empty(fast.bits, dtype=torch.int16)
                call.bits = bits.data_ptr()
        gamma, beta = _precise(weight, fast), _precise(bias, fast)
        call.scale = 0 if gamma is None else gamma.data_ptr()
        call.shift = 0 if beta is None else beta.data_ptr()
        call.mean, call.m2, call.inv_std = row, row + 2 * row_bytes, row + 3 * row_bytes
        call.factor = row + 4 * row_bytes
        call.mean_low = 0 if fixed else row + row_bytes
        _LIBRARY.run("infer" if fixed else "forward", call)
        ctx.fast, ctx.fixed = fast, fixed
        ctx.save_for_backward(x, weight, bias, residual if fast.needs_preactivation else None, numbers, bits)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, β and the residual."""
        fast, fixed, (dy,) = ctx.fast, ctx.fixed, grad_outputs
        wants_x, wants_weight, wants_bias, wants_residual, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain_on_cpu(dy) or mode() is not _EAGER:
            saved = _saved(ctx.saved_tensors, fast, fixed=fixed)
            wanted = Wanted(wants_x, wants_weight, wants_bias, wants_residual)
            return *backward(fast.plan, dy, saved, wanted), None, None, None
        x, weight, bias, residual, numbers, bits = ctx.saved_tensors
        strides, dtype = layout = fast.layout
        if x.stride() != strides or dy.stride() != strides or x.dtype is not dtype or dy.dtype is not dtype:
            x, dy = match_layout(x, layout), match_layout(dy, layout)  # hooks may have brought it back otherwise
        if residual is not None:
            residual = match_layout(residual, layout)
        if numbers.dtype is not fast.dtype or not numbers.is_contiguous():  # likewise
            numbers = numbers.to(fast.dtype).contiguous()
        dx = torch.empty_like(x) if wants_x else None
        dz = torch.empty_like(x) if wants_residual and fast.activates else None
        dgamma = _gradient_memory(weight, fast) if wants_weight else None
        dbeta = _gradient_memory(bias, fast) if wants_bias else None
        row, row_bytes, beta = numbers.data_ptr(), fast.row_bytes, _precise(bias, fast)
        call = _copy_call(fast.template)
        call.x, call.dy, call.fixed = x.data_ptr(), dy.data_ptr(), fixed
        call.mean, call.inv_std, call.scale = row, row + 3 * row_bytes, row + 4 * row_bytes
        call.mean_low = 0 if fixed else row + row_bytes
        call.residual = 0 if residual is None else residual.data_ptr()
        call.bits = 0 if bits is None else bits.data_ptr()
        call.shift = 0 if beta is None else beta.data_ptr()
        call.dx = 0 if dx is None else dx.data_ptr()
        call.dz = 0 if dz is None else dz.data_ptr()
        call.sum_dz = 0 if dbeta is None else dbeta.data_ptr()
        call.gamma_gradient = 0 if dgamma is None else dgamma.data_ptr()
        _LIBRARY.run("backward", call)
        dz = dy if wants_residual and not fast.activates else dz
        if dgamma is not None and dgamma.dtype is not weight.dtype:
            dgamma = dgamma.to(weight.dtype)
        if dbeta is not None and dbeta.dtype is not bias.dtype:
            dbeta = dbeta.to(bias.dtype)
        return dx, dgamma, dbeta, dz, None, None, None


def _saved(tensors: tuple[Any, ...], fast: FastPlan, *, fixed: bool) -> Saved:
    """Return what a forward has saved, by name."""
    (x, weight, bias, residual, numbers, bits), plan = tensors, fast.plan
    inputs = NormInputs(match_layout(x, fast.layout), weight, bias, match_layout(residual, fast.layout))
    shape = plan.parameter_shape if fixed else plan.statistics_shape
    mean, mean_low, m2, inv_std, _ = (row.reshape(shape) for row in numbers.view(5, -1))
    if fixed:
        return Saved(inputs, UseRunning(mean, m2), reserve=bits)
    return Saved(inputs, Batch(), Moments(plan.count, mean, m2, mean_low), inv_std, bits)


# What torch's own `apply` does beyond this is for torch.func, which `Normalize` serves.
_apply = super(torch.autograd.Function, FastNormalize).apply  # pyright: ignore


def train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, fast: FastPlan
) -> tuple[Tensor, Tensor]:
    """Return the output by the statistics of the batch, and the numbers of the step: `batch_moments` names them."""
    numbers = x.new_empty(fast.numbers, dtype=fast.dtype)
    return _apply(x, weight, bias, residual, fast, numbers, False), numbers


def infer(x: Tensor, residual: Tensor | None, ready: ReadyCall, *, detach: bool = False) -> Tensor:
    """Return the output by the running statistics; `detach`: γ and β are constants."""
    call = ready.inference
    if call is None or torch.is_grad_enabled():
        fast, (weight, bias, mean, var, _) = ready.fast, ready.held
        if detach:
            weight, bias = (p.detach() if p is not None and p.requires_grad else p for p in (weight, bias))
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
            mean, var = mean.view(-1), var.view(-1)  # pyright: ignore[reportOptionalMemberAccess]
            numbers = torch.cat((mean, mean, var, mean, mean))  # a copy: they may move before the backward
            return _apply(x, weight, bias, residual, fast, numbers, True)
        if call is None:
            weight, bias = _precise(weight, fast), _precise(bias, fast)  # which must live until the library has run
            call = _inference(fast, mean, var, weight, bias)  # pyright: ignore[reportArgumentType]
    y, call = torch.empty_like(x), _copy_call(call)
    call.x, call.y = x.data_ptr(), y.data_ptr()
    call.residual = 0 if residual is None else residual.data_ptr()
    _LIBRARY.run("infer", call)
    return y


def batch_moments(numbers: Tensor, plan: CallPlan) -> BatchMoments:
    """Return the moments of a step."""
    mean, mean_low, m2 = (row.reshape(plan.parameter_shape) for row in numbers.view(5, -1)[:3])
    return BatchMoments(Moments(plan.count, mean, m2, mean_low), grouped=False)


def update(ready: ReadyCall, numbers: Tensor) -> bool:
    """Update the running mean and variance and the count of batches, in place, unless the batch is not finite.

    Returns:
        Whether they have changed.
    """
    row, row_bytes = numbers.data_ptr(), ready.fast.row_bytes
    call = _copy_update(ready.update_call)  # pyright: ignore[reportArgumentType]  # there are running statistics
    call.mean, call.mean_low, call.m2 = row, row + row_bytes, row + 2 * row_bytes
    changed = _LIBRARY.update(call)
    torch.autograd.graph.increment_version(ready.updated)
    return changed
