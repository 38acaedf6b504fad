"""What a call must be given: every error that names a tensor or an option, before anything changes."""

import math
from collections.abc import Mapping
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm.core.passes import NormInputs
from batchnorm.core.plan import working_dtype
from batchnorm.core.spec import NormSpec
from batchnorm.core.step import zero_masked
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.layout import Axes, Axis, axes_of, weights_shape
from batchnorm.torch.tracing import is_exporting, is_readable, known_true


def has_memory(t: Tensor) -> bool:
    """Return whether the storage of a tensor holds all of its numbers: it may have been freed, or shrunk."""
    if t.numel() == 0:
        return True
    last = t.storage_offset() + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.untyped_storage().nbytes() >= (last + 1) * t.itemsize


def check_memory(name: str, t: Tensor | None) -> None:
    """Raise where the storage of a plain tensor does not hold its numbers: to read them would end the process.

    Raises:
        ArgumentError: then.
    """
    plain = type(t) is Tensor or type(t) is torch.nn.Parameter
    if t is None or not plain or torch.compiler.is_compiling() or is_exporting():
        return
    try:
        held = has_memory(t)
    except NotImplementedError:  # a stand-in of torch.func, which has no storage
        return
    if not held:
        raise ArgumentError(
            f"`{name}` has no memory for its {t.numel()} numbers: its storage was freed, or shrunk (sharded and "
            "offloaded models bring it back before a call)"
        )


def check_real(x: Any) -> None:
    """Raise unless x is a dense floating-point tensor.

    Raises:
        DtypeError: then, with the way out.
    """
    if not isinstance(x, Tensor):
        raise DtypeError(f"`input` must be a floating-point tensor, got {type(x).__name__}")
    if x.is_nested:
        raise DtypeError(
            "`input` must be a dense tensor, got a nested one (pad it, `.to_padded_tensor(0.0)`, and give "
            "`weights=`, a mask of what is no padding)"
        )
    if not x.is_floating_point():
        out = "make real and imaginary parts features of `torch.view_as_real`" if x.is_complex() else "call `.float()`"
        raise DtypeError(f"`input` must be a floating-point tensor, got {x.dtype} ({out} first)")


def check_input(x: Any, named: dict[str, Tensor | None], axes: Axis) -> Axes:
    """Return the plan for x, or raise naming what does not fit: dtype, rank, or the feature count of an argument.

    Raises:
        DtypeError: if x is not a floating-point tensor.
        ShapeError: if the rank of x does not admit `axes`, or an argument in `named` has not one number per feature.
    """
    check_real(x)
    if x.ndim < 2:
        raise ShapeError(
            f"`input` must have rank ≥ 2, the features and something to reduce over, got shape {tuple(x.shape)} "
            "(`.unsqueeze(0)` adds a batch axis)"
        )
    check_memory("input", x)
    layout = axes_of(x.ndim, axes)
    expected = layout.parameter_shape(x.shape)
    for name, value in named.items():
        if value is not None and tuple(value.shape) != expected:
            raise ShapeError(
                f"`{name}` must have shape {expected} for an input of shape {tuple(x.shape)} with axis={axes}, "
                f"got {tuple(value.shape)} ({_way_out(name, x, value)})"
            )
        check_memory(name, value)
    return layout


def _way_out(name: str, x: Tensor, value: Tensor) -> str:
    if name.startswith(("renorm_", "running_stddev")):
        return "a tool that narrows `running_mean` must narrow the buffers of `renorm` too"
    better = better_axis(x, len(value)) if value.ndim == 1 else ""
    return f"`axis` names the axes of features{better and f'; {better}'}"


def better_axis(x: Tensor, features: int) -> str:
    """Return which axis of x has so many features, the last of them; "" if there is none."""
    fitting = [i for i in range(1, x.ndim) if x.shape[i] == features]
    return f"axis={fitting[-1] - x.ndim} has {features}" if fitting else ""


def check_movable(statistics: Mapping[str, Tensor | None], batches: Tensor | None = None) -> None:
    """Raise unless a training step can move these in place: all of them, or else none would have to be moved.

    Raises:
        DtypeError: if a running statistic is not floating point, or the count of batches is not an integer.
        ArgumentError: if a running statistic is expanded, several features sharing one number in memory.
    """
    for name, value in statistics.items():
        if value is None:
            continue
        if not value.is_floating_point():
            raise DtypeError(f"`{name}` must be floating point, for training moves it, got {value.dtype}")
        if any(n > 1 and stride == 0 for n, stride in zip(value.shape, value.stride(), strict=True)):
            raise ArgumentError(
                f"`{name}` must have a number in memory for each feature, got an expanded view (`.clone()` it)"
            )
    if batches is not None and (batches.is_floating_point() or batches.is_complex() or batches.dtype == torch.bool):
        raise DtypeError(f"`num_batches_tracked` must be an integer, got {batches.dtype}")


def check_residual(residual: Any, x: Tensor) -> Tensor:
    """Return the residual, or raise unless it is a floating-point tensor of the shape of x."""
    if not isinstance(residual, Tensor) or not residual.is_floating_point():
        got = residual.dtype if isinstance(residual, Tensor) else type(residual).__name__
        raise DtypeError(f"`residual` must be a floating-point tensor, got {got} (a mask goes into `weights=`)")
    if residual.shape != x.shape:
        raise ShapeError(
            f"`residual` must have the input's shape {tuple(x.shape)}, got {tuple(residual.shape)} "
            "(`.expand_as(input)` repeats it; weights of samples go by name, `weights=`)"
        )
    check_memory("residual", residual)
    return residual


def check_weights(weights: Any, x: Tensor, layout: Axes) -> Tensor:
    """Return the weights in the rank of x, 1 on the axes of features, in the working precision; or raise.

    Raises:
        DtypeError: if they are not a tensor of booleans or real numbers.
        ShapeError: if they do not broadcast to the shape of x without its axes of features.
        ArgumentError: if they want a gradient.
    """
    if not isinstance(weights, Tensor) or weights.is_complex():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise DtypeError(f"`weights` must be a tensor, a bool mask or numbers ≥ 0, got {got}")
    if weights.requires_grad:
        raise ArgumentError("`weights` carry no gradient, got a tensor that requires one (`.detach()` it)")
    check_memory("weights", weights)
    full = weights_shape(weights.shape, x.shape, layout)
    if _has_bad(weights):
        raise ArgumentError(
            "`weights` must be finite and ≥ 0, got some that are not (an additive mask of 0 and −inf: `mask == 0`)"
        )
    return weights.detach().reshape(full).to(working_dtype(x.dtype, xp))


def _has_bad(weights: Tensor) -> bool:
    """Return whether weights are negative or not finite, where that can be read without waiting for a device."""
    if weights.dtype == torch.bool or not is_readable(weights):
        return False
    return known_true((~((weights >= 0.0) & (weights < math.inf))).any())


def check_call(
    spec: NormSpec, input: Any, named: dict[str, Tensor | None], *, residual: Any, weights: Any
) -> tuple[NormInputs, Axes]:
    """Return the arrays of a call and the plan of their axes; or raise naming what does not fit.

    Args:
        spec: The options.
        input: x.
        named: γ, β and the running statistics, by the names of their arguments.
        residual: Or None.
        weights: Of samples, or None.
    """
    for missing, other in (("running_mean", "running_var"), ("running_var", "running_mean")):
        if named[missing] is None and named[other] is not None:
            raise ArgumentError(f"`{missing}` must be given where `{other}` is, got None")
    axes = check_input(input, named, spec.axis)
    if residual is not None:
        residual = check_residual(residual, input)
    if weights is not None:
        weights = check_weights(weights, input, axes)
        input = zero_masked(input, weights, xp)
        residual = residual if residual is None else zero_masked(residual, weights, xp)
    return NormInputs(input, named["weight"], named["bias"], residual, weights), axes
