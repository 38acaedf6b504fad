"""`batch_norm`: torch.nn.functional's signature, then the options."""

from functools import lru_cache
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from batchnorm.activations import ActivationName
from batchnorm.conventions import TORCH, Estimator
from batchnorm.core import policy, step
from batchnorm.core.spec import Adjustment, NonFinite, NormSpec, SmallBatch
from batchnorm.errors import ArgumentError
from batchnorm.layout import Axis, normalise_axis
from batchnorm.statistics import Running
from batchnorm.torch import fast_step
from batchnorm.torch.autograd import FRONTEND
from batchnorm.torch.check import check_call, check_movable, has_memory
from batchnorm.torch.state import write

_remembered_spec = lru_cache(maxsize=256, typed=True)(NormSpec)
_SIMPLE = (int, float, str, type(None))


def _spec_of(arguments: tuple[Any, ...]) -> NormSpec:
    """Return the options, checked; those that are numbers, names and axes are remembered."""
    if torch.compiler.is_compiling() or not all(type(value) in _SIMPLE for value in arguments[1:]):
        return NormSpec(*arguments)
    return _remembered_spec(*arguments)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = TORCH.momentum,
    eps: float = TORCH.epsilon,
    *,
    residual: Tensor | None = None,
    weights: Tensor | None = None,
    axis: Axis = TORCH.axis,
    activation: ActivationName | None = None,
    virtual_batch_size: int | None = None,
    adjustment: Adjustment | None = None,
    running_variance: Estimator = TORCH.running_variance,
    nonfinite: NonFinite = "skip",
    small_batch: SmallBatch = "raise",
) -> Tensor:
    """Normalise `input` per feature, by the statistics of the batch or by the running ones.

    y = act(γ·(x−μ)/√(σ²+ε) + β + residual). In training μ and σ² (biased) are those of the batch, gradients flow
    through them, and the running statistics move by s ← s + α·(batch − s). In inference they are the running ones.

    Args:
        input: x, floating point, any rank ≥ 2; features along `axis`.
        running_mean: (C,), moved in place in training; None: nothing is remembered.
        running_var: (C,), likewise.
        weight: γ, (C,); 1 if None.
        bias: β, (C,); 0 if None.
        training: Whether to normalise by the batch.
        momentum: α, the weight of the new observation, in [0, 1]; a 0-d tensor is allowed.
        eps: ε > 0, inside the root.
        residual: Added before the activation; the shape of `input`.
        weights: Bool mask or weights ≥ 0 of the samples, broadcastable to `input` without its axes of features.
        axis: The kept axis, or axes; with several, every (C,) above has the input's rank with 1s on reduced axes.
        activation: None, "relu", "leaky_relu", "silu", "gelu", "tanh" or "sigmoid".
        virtual_batch_size: Split the batch into ⌊B/v⌋ groups, each normalised by its own moments.
        adjustment: `(shape) -> (scale, shift)` of x̂, in training only.
        running_variance: "unbiased" remembers σ²·N/(N−1), "biased" σ².
        nonfinite: What a batch with inf or NaN does to the running statistics: "skip", "raise" or "propagate".
        small_batch: What happens at one value per feature: "raise", "running" or "allow".

    Returns:
        y, in the shape and dtype of `input`. An empty batch gives an empty output and moves nothing.

    Raises:
        DtypeError: if `input`, `residual` or `weights` has a dtype that does not fit.
        ShapeError: if the rank, a feature count or a shape does not fit, or a feature is seen once in training.
        ArgumentError: if an option is out of range, or inference lacks statistics.
        NonFiniteError: under nonfinite="raise".

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.

    Differs:
        torch.nn.functional.batch_norm fixes axis 1, has no options and loses precision where |μ| ≫ σ; in Keras and
        Flax the momentum is 1−α, the axis the last and the remembered variance biased.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> mean, var = torch.zeros(1), torch.ones(1)
    >>> batch_norm(x, mean, var, training=True, momentum=0.5).ravel().tolist()
    [-0.9999949932098389, 0.9999949932098389]
    >>> mean.item(), var.item()  # half way from 0 to 2, and from 1 to 2·(2/1)·½ = 2
    (1.0, 1.5)
    """
    if momentum is None:  # pyright: ignore[reportUnnecessaryComparison]  # options are checked at run time too
        raise ArgumentError("`momentum` must be a number here, got None (the layer counts batches: give 1/(t+1))")
    alpha = TORCH.momentum if isinstance(momentum, Tensor) else momentum
    axes = normalise_axis(axis)
    arguments = (
        axes[0] if len(axes) == 1 else axes, eps, activation, alpha, running_variance,
        virtual_batch_size, None, adjustment, nonfinite, small_batch,
    )  # fmt: skip
    spec = _spec_of(arguments)
    if weights is None and not isinstance(momentum, Tensor) and fast_step.serves(input, residual):
        y = _in_one_call(spec, input, residual, (weight, bias, running_mean, running_var, None), training=training)
        if y is not None:
            return y
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    inputs, kept = check_call(spec, input, named, residual=residual, weights=weights)
    running = None if running_mean is None or running_var is None else Running(running_mean, running_var)
    chosen = policy.choose(spec, running, by_batch=training, weighted=weights is not None)
    plan = FRONTEND.plan(spec, inputs, kept)
    if not training:
        return FRONTEND.normalize(plan, inputs, chosen)[0]
    check_movable({"running_mean": running_mean, "running_var": running_var})
    y, batch = step.train(FRONTEND, spec, plan, inputs, chosen, running)
    if running is not None and batch is not None:
        with torch.no_grad():
            valid = None if nonfinite == "propagate" else step.is_finite(batch, running.var.dtype, xp)
            after, _ = step.update(running, batch, spec, momentum, xp, valid=valid)
            write(running, after)
    return y


def _in_one_call(
    spec: NormSpec, x: Tensor, residual: Tensor | None, held: tuple[Tensor | None, ...], *, training: bool
) -> Tensor | None:
    """Return the output where one call of the native library computes it, else None."""
    if residual is not None and not has_memory(residual):
        return None
    ready = fast_step.check(spec, x, held)
    if ready is None or not (ready.trains if training else ready.infers):
        return None
    if not training:
        return fast_step.infer(x, residual, ready)
    weight, bias, *_ = held
    y, numbers = fast_step.train(x, weight, bias, residual, ready.fast)
    if ready.update_call is not None:
        fast_step.update(ready, numbers)
    return y
