"""`batch_norm`: torch.nn.functional's signature, then the options."""

from typing import Any

import torch
from torch import Tensor

from batchnorm import statistics
from batchnorm.conventions import TORCH, Estimator, check_epsilon, check_momentum, check_running_variance
from batchnorm.errors import ArgumentError, DtypeError, ShapeError
from batchnorm.layout import Axis, Plan, plan
from batchnorm.statistics import Moments
from batchnorm.torch.normalize import by_batch, by_running


def check_input(x: Any, named: dict[str, Tensor | None], axes: Axis) -> Plan:
    """Return the plan for x, or raise naming what does not fit: dtype, rank, or the feature count of an argument.

    Raises:
        DtypeError: if x is not a floating-point tensor.
        ShapeError: if the rank of x does not admit `axes`, or an argument in `named` has not one number per feature.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(f"`input` must be a floating-point tensor, got {got} (call `.float()` on it first)")
    if x.ndim < 2:
        raise ShapeError(
            f"`input` must have rank ≥ 2, the features and something to reduce over, got shape {tuple(x.shape)} "
            "(`.unsqueeze(0)` adds a batch axis)"
        )
    layout = plan(x.ndim, axes)
    expected = layout.parameter_shape(x.shape)
    for name, value in named.items():
        if value is not None and tuple(value.shape) != expected:
            raise ShapeError(
                f"`{name}` must have shape {expected} for an input of shape {tuple(x.shape)} with axis={axes}, "
                f"got {tuple(value.shape)} (`axis` names the kept axes)"
            )
    return layout


def _check_count(x: Tensor, layout: Plan) -> None:
    if layout.count(x.shape) == 1:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)} "
            "(use a larger batch, drop the last partial one, or call `.eval()`)"
        )


@torch.no_grad()
def remember(
    running_mean: Tensor, running_var: Tensor, moments: Moments, momentum: float | Tensor, estimator: Estimator
) -> None:
    """Move the running statistics: s ← s + α·(batch − s), in float32 at least."""
    observed_var = statistics.observed_variance(moments, estimator)
    running_mean.copy_(statistics.updated(running_mean, moments.mean + moments.mean_low, momentum))
    running_var.copy_(statistics.updated(running_var, observed_var, momentum))


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
    axis: Axis = TORCH.axis,
    running_variance: Estimator = TORCH.running_variance,
) -> Tensor:
    """Normalise `input` per feature, by the statistics of the batch or by the running ones.

    y = γ·(x−μ)/√(σ²+ε) + β. In training μ and σ² (biased) are those of the batch, gradients flow through them, and the
    running statistics move by s ← s + α·(batch − s). In inference they are the running ones: an affine map.

    Args:
        input: x, floating point, any rank ≥ 2; features along `axis`.
        running_mean: (C,), moved in place in training; None: nothing is remembered.
        running_var: (C,), likewise.
        weight: γ, (C,); 1 if None.
        bias: β, (C,); 0 if None.
        training: Whether to normalise by the batch.
        momentum: α, the weight of the new observation, in [0, 1]; a 0-d tensor is allowed.
        eps: ε > 0, inside the root.
        axis: The kept axis, or axes; with several, every (C,) above has the input's rank with 1s on reduced axes.
        running_variance: "unbiased" remembers σ²·N/(N−1), "biased" σ².

    Returns:
        y, in the shape and dtype of `input`. An empty batch gives an empty output and moves nothing.

    Raises:
        DtypeError: if `input` is not floating point.
        ShapeError: if the rank or a feature count does not fit, or there is one value per feature in training.
        ArgumentError: if `momentum`, `eps` or `running_variance` is out of range, or inference lacks statistics.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.

    Differs:
        torch.nn.functional.batch_norm fixes axis 1 and loses precision where |μ| ≫ σ; in Keras and Flax the momentum is
        1−α, the axis the last and the remembered variance biased.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> mean, var = torch.zeros(1), torch.ones(1)
    >>> batch_norm(x, mean, var, training=True, momentum=0.5).ravel().tolist()
    [-0.9999949932098389, 0.9999949932098389]
    >>> mean.item(), var.item()  # half way from 0 to 2, and from 1 to 2·(2/1)·½ = 2
    (1.0, 1.5)
    """
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    layout = check_input(input, named, axis)
    check_epsilon(eps)
    if not isinstance(momentum, Tensor):
        check_momentum(momentum)
    if momentum is None:  # pyright: ignore[reportUnnecessaryComparison]  # options are checked at run time too
        raise ArgumentError("`momentum` must be a number here, got None (the layer counts batches: give 1/(t+1))")
    check_running_variance(running_variance)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ArgumentError(f"`{missing}` must be given where the other running statistic is, got None")
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError("`running_mean` and `running_var` must be given in inference, got None")
        return by_running(input, (running_mean, running_var), weight, bias, layout, eps)
    _check_count(input, layout)
    if input.numel() == 0:  # an affine map of nothing: gradients of γ and β are zero, as in torch, not missing
        neutral = input.new_zeros(layout.parameter_shape(input.shape))
        return by_running(input, (neutral, neutral), weight, bias, layout, eps)
    y, moments = by_batch(input, weight, bias, layout, eps)
    if running_mean is not None and running_var is not None:
        remember(running_mean, running_var, moments, momentum, running_variance)
    return y
