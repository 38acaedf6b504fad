"""One training step of the layer on plain tensors: which statistics to use, and what to remember of the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm import statistics
from batchnorm.activations import check_activation
from batchnorm.conventions import TORCH, Estimator, check_epsilon, check_groups, check_running_variance
from batchnorm.errors import ArgumentError, NonFiniteError, ShapeError
from batchnorm.layout import Axis, Plan
from batchnorm.renorm import REMEMBERED
from batchnorm.statistics import Moments, Observed, Running
from batchnorm.steps import Inputs, Recipe, adjusted, by_groups, silence
from batchnorm.torch.check import check_count, check_input, check_residual, check_weights
from batchnorm.torch.normalize import by_batch, by_running
from batchnorm.torch.snapshot import snapshot

NonFinite = Literal["skip", "raise", "propagate"]
SmallBatch = Literal["raise", "running", "allow"]
NON_FINITE, SMALL_BATCH = get_args(NonFinite), get_args(SmallBatch)
Adjustment = Callable[[torch.Size], tuple[Any, Any]]


@dataclass(frozen=True)
class Options:
    """The choices that a layer and the function share; `BatchNorm` says what each means."""

    eps: float = TORCH.epsilon
    axis: Axis = TORCH.axis
    activation: str | None = None
    virtual_batch_size: int | None = None
    adjustment: Adjustment | None = None
    running_variance: Estimator = TORCH.running_variance
    nonfinite: NonFinite = "skip"
    small_batch: SmallBatch = "raise"


def check_options(options: Any) -> None:
    """Raise unless every choice is one that exists, alone and together with the others."""
    check_epsilon(options.eps)
    check_activation(options.activation)
    check_groups(options.virtual_batch_size, options.adjustment)
    check_running_variance(options.running_variance)
    if options.nonfinite not in NON_FINITE:
        raise ArgumentError(f'`nonfinite` must be "skip", "raise" or "propagate", got {options.nonfinite!r}')
    if options.small_batch not in SMALL_BATCH:
        raise ArgumentError(f'`small_batch` must be "raise", "running" or "allow", got {options.small_batch!r}')


@dataclass(frozen=True)
class Step:
    """What a training batch leaves to be remembered: its moments, in the parameters' shape.

    Over groups they have an axis more, the first. The count is a number, or a tensor that broadcasts against the mean.
    """

    moments: Moments
    grouped: bool


def gather(
    input: Any, named: dict[str, Tensor | None], options: Any, *, residual: Any, weights: Any
) -> tuple[Inputs, Recipe]:
    """Check what a call was given, and put it in order; `named` holds weight, bias, running_mean and running_var."""
    for missing, other in (("running_mean", "running_var"), ("running_var", "running_mean")):
        if named[missing] is None and named[other] is not None:
            raise ArgumentError(f"`{missing}` must be given where `{other}` is, got None")
    plan = check_input(input, named, options.axis)
    if residual is not None:
        residual = check_residual(residual, input)
    if weights is not None:
        weights = check_weights(weights, input, plan)
        input = silence(input, weights, xp)
        residual = residual if residual is None else silence(residual, weights, xp)
    inputs = Inputs(input, named["weight"], named["bias"], residual, weights)
    inputs = inputs._replace(mean=named["running_mean"], var=named["running_var"])
    return inputs, Recipe(plan, options.eps, options.activation, 1 if options.small_batch == "running" else 0)


def infer(inputs: Inputs, recipe: Recipe) -> Tensor:
    """Normalise by the running statistics."""
    if inputs.mean is None or inputs.var is None:
        raise ArgumentError("`running_mean` and `running_var` must be given in inference, got None")
    return by_running(inputs, recipe)


def train(inputs: Inputs, recipe: Recipe, options: Any) -> tuple[Tensor, Step | None]:
    """Normalise by the batch; return the output and what there is to remember, None where the step does not count.

    Raises:
        ShapeError: where a feature is seen once, and `small_batch` says to raise.
        NonFiniteError: where the batch holds inf or NaN, and `nonfinite` says to raise.
    """
    x, plan = inputs.x, recipe.plan
    if x.numel() == 0:  # an affine map of nothing: gradients of γ and β are zero, as in torch, not missing
        neutral = x.new_zeros(plan.parameter_shape(x.shape))
        return by_running(inputs._replace(mean=neutral, var=neutral), recipe), None
    groups = 1
    if options.virtual_batch_size is not None:
        groups = max(1, x.shape[plan.batch_axis] // options.virtual_batch_size)
    if options.small_batch != "allow" and not check_count(x, plan, groups):
        if options.small_batch == "running":
            if inputs.mean is None:
                raise ArgumentError('small_batch="running" needs `running_mean` and `running_var`, got None')
            return infer(inputs, recipe), None
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}"
            f"{f' in {groups} virtual batches' if groups > 1 else ''} (use a larger batch, drop the last partial "
            'one, call `.eval()`, or choose small_batch="running" or "allow")'
        )
    inputs = _constants(inputs)
    if options.adjustment is not None:
        y, moments = adjusted(inputs, recipe, options.adjustment, by_batch, xp)
    elif groups > 1:
        y, moments = by_groups(inputs, recipe, groups, by_batch, xp)
    else:
        y, moments = by_batch(inputs, recipe)
    if options.nonfinite == "raise" and not moments.m2.isfinite().all():
        raise NonFiniteError(
            f'`input` of shape {tuple(x.shape)} holds inf or NaN, or its variance overflows (nonfinite="skip" leaves '
            "the running statistics untouched and goes on)"
        )
    step = _step(moments, plan, tuple(x.shape), grouped=groups > 1)
    if isinstance(step.moments.count, Tensor) and recipe.least:  # what running statistics stood in for is not heard
        step = unless(step.moments.count > recipe.least, step)
    return y, step


def _constants(inputs: Inputs) -> Inputs:
    """Return the inputs with copies of the running statistics that the backward reads again: they move before that."""
    if inputs.weights is None or inputs.mean is None or inputs.var is None:
        return inputs._replace(mean=None, var=None)
    return inputs._replace(mean=snapshot(inputs.mean), var=snapshot(inputs.var))


def _step(moments: Moments, plan: Plan, shape: tuple[int, ...], *, grouped: bool) -> Step:
    features = plan.parameter_shape(shape)

    def tidy(a: Tensor, *features: int) -> Tensor:
        a = a.movedim(plan.batch_axis + 1, 0) if grouped else a
        return a.reshape(*a.shape[:grouped], *features)

    count, *arrays = moments.count, moments.mean, moments.m2, moments.mean_low
    if isinstance(count, Tensor):
        count = tidy(count, *(1 for _ in features))
    return Step(Moments(count, *(tidy(a, *features) for a in arrays)), grouped)


def finite(step: Step, dtype: torch.dtype) -> Tensor:
    """Return whether the batch may be remembered in `dtype`; m2 is finite only where the mean is."""
    return step.moments.m2.to(dtype).isfinite().all()


def merged(steps: Sequence[Step]) -> Step:
    """Return what several batches together leave to be remembered: their merged moments, or all their groups."""
    if not any(s.grouped for s in steps):
        return Step(reduce(lambda a, b: statistics.merge(a, b, xp), (s.moments for s in steps)), grouped=False)
    moments = [_by_group(s) for s in steps]
    return Step(Moments(*(torch.cat(arrays) for arrays in zip(*moments, strict=True))), grouped=True)


def _by_group(step: Step) -> Moments:
    """Return moments with an axis of groups, the first, and a count for each; one batch is one group."""
    count, mean, m2, mean_low = (
        step.moments if step.grouped else (a[None] if isinstance(a, Tensor) else a for a in step.moments)
    )
    each = (len(mean),) + (1,) * (mean.ndim - 1)
    count = count.expand(each) if isinstance(count, Tensor) else mean.new_full(each, count)
    return Moments(count, mean, m2, mean_low)


def unless(good: Tensor, step: Step) -> Step:
    """Return the step as it is where it is `good`, and as one of count zero elsewhere."""
    count, mean, m2, mean_low = step.moments
    mean, m2, mean_low = (torch.where(good, a, torch.zeros_like(a)) for a in (mean, m2, mean_low))
    if not isinstance(count, Tensor):
        count = mean.new_full((1,) * mean.ndim, count)
    return Step(Moments(count * good, mean, m2, mean_low), step.grouped)


def observed(step: Step, estimator: Estimator) -> Observed:
    """Return what the running statistics take in, in the parameters' shape."""
    seen = statistics.observed(step.moments, estimator, xp, 0 if step.grouped else None)
    return Observed(*(a[0] if isinstance(a, Tensor) else a for a in seen)) if step.grouped else seen


@torch.no_grad()
def remember(
    running: Running,
    step: Step,
    momentum: float | Tensor,
    *,
    estimator: Estimator,
    good: Tensor | None,
    renorm: tuple[float, float] | None = None,
) -> Tensor | None:
    """Move the running statistics, in place, in float32 at least, where the batch is `good`, None for always.

    Returns:
        Whether they have moved; None for yes.
    """
    seen = observed(step, REMEMBERED if renorm is not None else estimator)
    moved = good
    if isinstance(seen.count, Tensor):
        heard = (seen.count > 0).all()
        moved = heard if moved is None else moved & heard
    after = statistics.remembered(running, seen, momentum, xp, renorm=renorm)
    for old, new in zip(running, after, strict=True):
        if old is not None and new is not None:
            old.copy_(new if moved is None else torch.where(moved, new.to(old.dtype), old))
    return moved
